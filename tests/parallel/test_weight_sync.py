"""Local meshes and weight sync for any device order of the mesh. The recipes are tested in tests/recipes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dv2_jax.config import ConfigError, EngineConfig
from dv2_jax.engine.buckets import per_host
from dv2_jax.parallel.mesh import AXES, max_tensor_parallelism
from dv2_jax.parallel.weight_sync import local_mesh, shard_owner_process


@dataclass(frozen=True)
class Device:
    process_index: int
    id: int


def mesh(owners) -> Mesh:
    """Creates a mesh of devices that belong to these processes; with `context` if there are four dimensions."""
    owners = np.array(owners)
    devices = [Device(int(process), number) for number, process in enumerate(owners.flat)]
    names = AXES if owners.ndim == 3 else ("data", "fsdp", "context", "tensor")
    return Mesh(np.array(devices, object).reshape(owners.shape), names)


@pytest.mark.parametrize(
    ("owners", "max_tensor", "shape", "rows"),
    [
        ([[[0], [0], [1], [1]]], 4, (1, 1, 2), [2, 3]),
        ([[[0], [1], [0], [1]]], 4, (1, 1, 2), [1, 3]),  # as on v5p, where hosts are interleaved in topology order
        ([[[0], [0], [1], [1]]], 1, (2, 1, 1), [2, 3]),  # one key/value head cannot be sharded
        ([[[0], [0], [0], [0], [1], [1], [1], [1]]], 2, (2, 1, 2), [4, 5, 6, 7]),  # as for 3B on four chips
        ([[[0]], [[0]], [[1]], [[1]]], 4, (2, 1, 1), [2, 3]),  # replicated weights stay replicated
        ([[[0], [0]], [[1], [1]], [[0], [0]], [[1], [1]]], 4, (2, 1, 2), [2, 3, 6, 7]),
        ([[[0, 0], [1, 1], [0, 0], [1, 1]]], 4, (1, 1, 4), [1, 3]),
        ([[[0, 0], [1, 1], [0, 0], [1, 1]]], 2, (2, 1, 2), [1, 3]),
    ],
)
def test_a_hosts_mesh_has_its_devices_and_splits_no_weight_that_is_gathered(owners, max_tensor, shape, rows):
    """Catches: a device of another host, weights all-gathered for every token, heads sharded over too many devices."""
    full_mesh = mesh(owners)
    own = local_mesh(full_mesh, max_tensor, 1)
    assert own.axis_names == AXES and own.devices.shape == shape
    assert np.flatnonzero(np.equal(shard_owner_process(full_mesh), 1)).tolist() == rows
    assert (
        own.devices.ravel().tolist() == full_mesh.devices.reshape(-1, full_mesh.shape["tensor"])[rows].ravel().tolist()
    )


def test_one_host_keeps_a_mesh_that_gathers_nothing():
    full_mesh = mesh([[[0, 0]], [[0, 0]]])
    assert local_mesh(full_mesh, 4, 0) is full_mesh
    assert local_mesh(mesh([[[0], [0]]]), 4, 0).shape == {"data": 1, "fsdp": 1, "tensor": 2}


def test_max_tensor_parallelism_divides_all_dimensions_that_it_shards():
    params = {"q": jax.ShapeDtypeStruct((8, 12, 4), "float32"), "mlp": jax.ShapeDtypeStruct((8, 18), "float32")}
    axes = {"q": ("embed", "heads", "head_dim"), "mlp": ("embed", "mlp")}
    assert max_tensor_parallelism(params, axes) == 6


@pytest.mark.parametrize(("max_tensor", "shape"), [(1, (4, 1, 1)), (2, (2, 1, 2)), (4, (1, 1, 4))])
def test_devices_that_split_tokens_generate_like_all_others(max_tensor, shape):
    """Catches: a generation mesh that keeps `context`, and batch shards counted once per `context` device."""
    full_mesh = mesh([[[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]])
    assert shard_owner_process(full_mesh) == [0, 0, 1, 1]
    own = local_mesh(full_mesh, max_tensor, 1)
    assert own.axis_names == AXES and own.devices.shape == shape
    assert own.devices.ravel().tolist() == full_mesh.devices[0, 2:].ravel().tolist()
    assert local_mesh(mesh([[[[0], [0]]]]), max_tensor, 0).axis_names == AXES


def test_meshes_that_hosts_cannot_divide_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"mesh.context=2, mesh.tensor=1: .* several hosts"):
        local_mesh(mesh([[[[0], [1]]]]), 4, 0)
    with pytest.raises(ConfigError, match=r"mesh.tensor=2: .* several hosts.*choose smaller sizes"):
        local_mesh(mesh([[[0, 1], [0, 1]]]), 4, 0)
    with pytest.raises(ConfigError, match="different numbers"):
        local_mesh(mesh([[[0], [0], [1]]]), 4, 0)


def test_the_engines_of_all_hosts_together_have_the_configured_sizes():
    engine = EngineConfig(slots=8, pages=64, prefill_rows=4, image_cache_tokens=10)
    assert per_host(engine, 4) == EngineConfig(slots=2, pages=16, prefill_rows=1, image_cache_tokens=10)
    with pytest.raises(ConfigError, match="engine.prefill_rows = 4 is not divisible by 3 hosts"):
        per_host(EngineConfig(slots=9, pages=9, prefill_rows=4), 3)


PROGRAM = """
import json
from dv2_jax.parallel import distributed
distributed.initialize()
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from dv2_jax.parallel.weight_sync import make_weight_sync, local_mesh
from dv2_jax.parallel.mesh import AXES, param_shardings
from dv2_jax.telemetry.recompilation import RecompilationCounter
me, found = jax.process_index(), []
first, second = jax.devices()[:2], jax.devices()[2:]
for order in (first + second, [first[0], second[0], first[1], second[1]]):
    for shape in ((1, 4, 1), (2, 2, 1), (4, 1, 1)):
        mesh = Mesh(np.array(order).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)
        axes = {"kernel": ("layers", "embed", "mlp"), "scale": ("norm",)}
        values = {"kernel": np.arange(48.0, dtype=np.float32).reshape(2, 4, 6), "scale": np.ones(4, np.float32)}
        params = {n: jax.device_put(values[n], s) for n, s in param_shardings(mesh, axes).items()}
        copy = make_weight_sync(mesh, 2, axes, "bfloat16")
        copied = copy(params)
        counter = RecompilationCounter()
        copied = copy(params)
        for name, x in copied.items():
            assert x.is_fully_addressable and x.dtype == "bfloat16" and x.devices() == set(jax.local_devices())
            assert x.sharding.is_equivalent_to(param_shardings(local_mesh(mesh, 2), axes)[name], x.ndim)
            np.testing.assert_array_equal(np.asarray(x, np.float32), values[name])
        found.append(counter.count)
print(json.dumps(found))
"""


def test_every_host_gets_a_full_copy_of_the_weights(two_processes):
    """Catches: a shard that is missing on a host or swapped with another one, and recompilation of the copy."""
    assert two_processes(PROGRAM, devices_each=2) == [[0] * 6] * 2
