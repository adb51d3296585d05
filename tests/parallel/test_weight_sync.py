"""What each host has of a mesh, whatever order the mesh has its devices in. The whole recipe: tests/recipes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dv2_jax.config import ConfigError, EngineConfig
from dv2_jax.engine.buckets import of_one_host
from dv2_jax.parallel.mesh import AXES, widest_tensor
from dv2_jax.parallel.weight_sync import own_mesh, owners_of_rows


@dataclass(frozen=True)
class Device:
    process_index: int
    id: int


def mesh(owners) -> Mesh:
    """A mesh of devices that belong to these processes; with `context` where there are four dimensions."""
    owners = np.array(owners)
    devices = [Device(int(process), number) for number, process in enumerate(owners.flat)]
    names = AXES if owners.ndim == 3 else ("data", "fsdp", "context", "tensor")
    return Mesh(np.array(devices, object).reshape(owners.shape), names)


@pytest.mark.parametrize(
    ("owners", "widest", "shape", "rows"),
    [
        ([[[0], [0], [1], [1]]], 4, (1, 1, 2), [2, 3]),
        ([[[0], [1], [0], [1]]], 4, (1, 1, 2), [1, 3]),  # as on v5p, where hosts lie side by side in JAX's order
        ([[[0], [0], [1], [1]]], 1, (2, 1, 1), [2, 3]),  # one head of keys cannot be divided
        ([[[0], [0], [0], [0], [1], [1], [1], [1]]], 2, (2, 1, 2), [4, 5, 6, 7]),  # as 3B on four chips
        ([[[0]], [[0]], [[1]], [[1]]], 4, (2, 1, 1), [2, 3]),  # weights whole on every device stay so
        ([[[0], [0]], [[1], [1]], [[0], [0]], [[1], [1]]], 4, (2, 1, 2), [2, 3, 6, 7]),
        ([[[0, 0], [1, 1], [0, 0], [1, 1]]], 4, (1, 1, 4), [1, 3]),
        ([[[0, 0], [1, 1], [0, 0], [1, 1]]], 2, (2, 1, 2), [1, 3]),
    ],
)
def test_a_hosts_mesh_has_its_devices_and_splits_no_weight_that_is_gathered(owners, widest, shape, rows):
    """Catches: another host's device, weights gathered for every token, heads split over more devices than divide them."""
    whole = mesh(owners)
    own = own_mesh(whole, widest, 1)
    assert own.axis_names == AXES and own.devices.shape == shape
    assert np.flatnonzero(np.equal(owners_of_rows(whole), 1)).tolist() == rows
    assert own.devices.ravel().tolist() == whole.devices.reshape(-1, whole.shape["tensor"])[rows].ravel().tolist()


def test_one_host_keeps_a_mesh_that_gathers_nothing():
    whole = mesh([[[0, 0]], [[0, 0]]])
    assert own_mesh(whole, 4, 0) is whole
    assert own_mesh(mesh([[[0], [0]]]), 4, 0).shape == {"data": 1, "fsdp": 1, "tensor": 2}


def test_the_widest_tensor_divides_all_that_it_splits():
    params = {"q": jax.ShapeDtypeStruct((8, 12, 4), "float32"), "mlp": jax.ShapeDtypeStruct((8, 18), "float32")}
    axes = {"q": ("embed", "heads", "head_dim"), "mlp": ("embed", "mlp")}
    assert widest_tensor(params, axes) == 6


@pytest.mark.parametrize(("widest", "shape"), [(1, (4, 1, 1)), (2, (2, 1, 2)), (4, (1, 1, 4))])
def test_devices_that_split_tokens_generate_like_all_others(widest, shape):
    """Catches a mesh to generate on that keeps `context`, and rows of a batch that are counted once for each of its devices."""
    whole = mesh([[[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]])
    assert owners_of_rows(whole) == [0, 0, 1, 1]
    own = own_mesh(whole, widest, 1)
    assert own.axis_names == AXES and own.devices.shape == shape
    assert own.devices.ravel().tolist() == whole.devices[0, 2:].ravel().tolist()
    assert own_mesh(mesh([[[[0], [0]]]]), widest, 0).axis_names == AXES


def test_meshes_that_hosts_cannot_divide_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"mesh.context=2, mesh.tensor=1: .* several hosts"):
        own_mesh(mesh([[[[0], [1]]]]), 4, 0)
    with pytest.raises(ConfigError, match=r"mesh.tensor=2: .* several hosts.*choose smaller ones"):
        own_mesh(mesh([[[0, 1], [0, 1]]]), 4, 0)
    with pytest.raises(ConfigError, match="different numbers"):
        own_mesh(mesh([[[0], [0], [1]]]), 4, 0)


def test_the_engines_of_all_hosts_together_have_the_configured_sizes():
    engine = EngineConfig(slots=8, pages=64, prefill_rows=4, picture_tokens=10)
    assert of_one_host(engine, 4) == EngineConfig(slots=2, pages=16, prefill_rows=1, picture_tokens=10)
    with pytest.raises(ConfigError, match="engine.prefill_rows = 4 does not divide among 3 hosts"):
        of_one_host(EngineConfig(slots=9, pages=9, prefill_rows=4), 3)


PROGRAM = """
import json
from dv2_jax.parallel import distributed
distributed.initialize()
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from dv2_jax.parallel.weight_sync import to_own_devices, own_mesh
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
        copy = to_own_devices(mesh, 2, axes, "bfloat16")
        copied = copy(params)
        counter = RecompilationCounter()
        copied = copy(params)
        for name, x in copied.items():
            assert x.is_fully_addressable and x.dtype == "bfloat16" and x.devices() == set(jax.local_devices())
            assert x.sharding.is_equivalent_to(param_shardings(own_mesh(mesh, 2), axes)[name], x.ndim)
            np.testing.assert_array_equal(np.asarray(x, np.float32), values[name])
        found.append(counter.count)
print(json.dumps(found))
"""


def test_weights_come_whole_to_the_devices_of_every_host(two_processes):
    """Catches: a part of a weight that another host kept, or that lies where another part belongs; programs compiled anew."""
    assert two_processes(PROGRAM, devices_each=2) == [[0] * 6] * 2
