"""The devices on which a host generates, and a copy of the weights there.

Generation needs no other host: each has an engine on its own devices, and hosts only meet to learn. It also splits
weights otherwise than learning does: a step of learning gathers them once for thousands of tokens, a step of decoding
would gather them for one token of every sequence. So weights may lie twice: as the mesh splits them, for learning, and
whole on every host, heads and features spread over its devices. They go from one to the other over the devices' links,
never through the memory of a host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jaxtyping import Array

from dv2_jax.config import ConfigError
from dv2_jax.parallel.mesh import AXES, CONTEXT, param_shardings

Params = dict[str, Array]


def own_mesh(mesh: Mesh, widest: int, process: int | None = None) -> Mesh:
    """The devices of one process (default: of this one) as a mesh to generate on; `mesh` itself where that is one.

    `tensor` takes as many of those along `fsdp` as it can within `widest`, what divides all that it splits
    (`parallel.mesh.widest_tensor`); `data` takes the rest, and `fsdp` none.
    So it does with those along `context`, which a mesh to generate on does not have.
    Raises ConfigError where the devices of a row, those along `context` and `tensor`, belong to several processes.
    """
    owners, fsdp, tensor = owners_of_rows(mesh), mesh.shape["fsdp"], mesh.shape["tensor"]
    spare = fsdp * mesh.shape.get(CONTEXT, 1)
    if len(set(owners)) == 1 and spare == 1:
        return mesh
    mine = np.equal(owners, jax.process_index() if process is None else process)
    rows = mesh.devices.reshape(len(owners), -1)[mine].reshape(-1, tensor)
    tensor *= math.gcd(max(1, widest // tensor), math.gcd(spare, len(rows)))
    return Mesh(rows.reshape(-1, 1, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def owners_of_rows(mesh: Mesh) -> list[int]:
    """Which process has the devices of each data shard, in the order of a batch's rows.

    Raises ConfigError as `own_mesh`, and where processes have different numbers of shards.
    """
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    owners = [{device.process_index for device in row} for row in rows]
    if any(len(owner) > 1 for owner in owners):
        written = ", ".join(f"mesh.{name}={mesh.shape[name]}" for name in mesh.axis_names[2:])
        raise ConfigError(
            f"{written}: some of these groups of devices belong to several hosts, but every host generates on its own"
            " devices and packs its own rows; choose smaller ones (1 always works) and a larger mesh.fsdp"
        )
    found = [owner.pop() for owner in owners]
    if len({found.count(process) for process in found}) > 1:
        raise ConfigError(f"the hosts have different numbers of the mesh's {len(found)} data shards: use equal hosts")
    return found


def to_own_devices(
    mesh: Mesh, widest: int, logical_axes: Mapping[str, tuple[str | None, ...]], dtype: jax.typing.DTypeLike
) -> Callable[[Params], Params]:
    """A function from weights on `mesh` to a copy of them on `own_mesh`. Every process calls it.

    The copy is of `dtype`, that of the computation: what only reads weights casts them to it anyway.
    """
    processes = sorted(set(owners_of_rows(mesh)))
    hosts = Mesh(np.stack([own_mesh(mesh, widest, process).devices for process in processes]), ("host", *AXES))
    own = own_mesh(mesh, widest)
    here = param_shardings(own, logical_axes)
    everywhere = {name: NamedSharding(hosts, place.spec) for name, place in here.items()}
    cast = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype), params))

    def local(x: Array, place: Sharding) -> Array:
        place = place if own.size > 1 else SingleDeviceSharding(own.devices.item())
        return jax.make_array_from_single_device_arrays(x.shape, place, [shard.data for shard in x.addressable_shards])

    def copy(params: Params) -> Params:
        return {name: local(x, here[name]) for name, x in jax.device_put(cast(params), everywhere).items()}

    return copy
