"""Weight sync from the training mesh to the per-host mesh that generates.

Each host rolls out on its local devices without communicating with other hosts, and with another sharding than training:
a training step all-gathers FSDP weights once for thousands of tokens, but a decode step would gather them for one token
of every sequence. Weights may therefore exist twice: FSDP-sharded for training, and per host as a tensor-parallel copy
for generation. The copy is made device to device (ICI, DCN), not through host memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jaxtyping import Array

from dv2_jax.config import ConfigError
from dv2_jax.parallel.mesh import AXES, CONTEXT, num_data_shards, param_shardings

# Copies the trainer's weights to the devices of this host's engine. Every host calls it.
WeightSync = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def local_mesh(mesh: Mesh, max_tensor: int, process: int | None = None) -> Mesh:
    """Returns the generation mesh of one process (default: this one), or `mesh` itself if it already is one.

    The devices along `fsdp` and `context` are moved to `tensor`, as far as `max_tensor` allows
    (`parallel.mesh.max_tensor_parallelism`), and the rest to `data`: a generation mesh has neither `fsdp` nor `context`.
    Raises ConfigError if a tensor/context group spans several processes.
    """
    owners = shard_owner_process(mesh)
    tensor = mesh.shape["tensor"]
    spare = mesh.shape["fsdp"] * mesh.shape.get(CONTEXT, 1)
    if len(set(owners)) == 1 and spare == 1:
        return mesh
    is_local = np.equal(owners, jax.process_index() if process is None else process)
    rows = mesh.devices.reshape(len(owners), -1)[is_local].reshape(-1, tensor)
    tensor *= math.gcd(max(1, max_tensor // tensor), math.gcd(spare, len(rows)))
    return Mesh(rows.reshape(-1, 1, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shard_owner_process(mesh: Mesh) -> list[int]:
    """Returns the process that owns each batch shard, in the order of the batch.

    Raises ConfigError like `local_mesh`, and if processes own different numbers of shards.
    """
    rows = mesh.devices.reshape(num_data_shards(mesh), -1)
    owners = [{device.process_index for device in row} for row in rows]
    if any(len(owner) > 1 for owner in owners):
        sizes = ", ".join(f"mesh.{name}={mesh.shape[name]}" for name in mesh.axis_names[2:])
        raise ConfigError(
            f"{sizes}: some of these device groups span several hosts, but every host generates on its local devices"
            " and packs its own rows; choose smaller sizes (1 always works) and a larger mesh.fsdp"
        )
    found = [owner.pop() for owner in owners]
    if len({found.count(process) for process in found}) > 1:
        raise ConfigError(f"the hosts have different numbers of the mesh's {len(found)} data shards: use equal hosts")
    return found


def make_weight_sync(
    mesh: Mesh, max_tensor: int, logical_axes: Mapping[str, tuple[str | None, ...]], dtype: jax.typing.DTypeLike
) -> WeightSync:
    """Returns a collective function that copies weights from `mesh` to every host's `local_mesh`.

    The copy has `dtype`, the compute dtype, to which the forward pass would cast the weights anyway.
    """
    processes = sorted(set(shard_owner_process(mesh)))
    local_meshes = [local_mesh(mesh, max_tensor, process).devices for process in processes]
    host_mesh = Mesh(np.stack(local_meshes), ("host", *AXES))
    own_mesh = local_mesh(mesh, max_tensor)
    local_shardings = param_shardings(own_mesh, logical_axes)
    # Replicated over `host`: every host gets a full copy.
    global_shardings = {name: NamedSharding(host_mesh, sharding.spec) for name, sharding in local_shardings.items()}
    cast = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype), params))

    def addressable(x: Array, sharding: Sharding) -> Array:
        sharding = sharding if own_mesh.size > 1 else SingleDeviceSharding(own_mesh.devices.item())
        return jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shard.data for shard in x.addressable_shards]
        )

    def weight_sync(params: Mapping[str, Any]) -> Mapping[str, Any]:
        copies = jax.device_put(cast(params), global_shardings)
        return {name: addressable(x, local_shardings[name]) for name, x in copies.items()}

    return weight_sync
