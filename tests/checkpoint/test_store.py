"""Tests of the checkpoint store: lossless restore, also on another mesh, and safety against killed saves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dv2_jax.checkpoint.store import CheckpointStore

SAVER = """
import sys
import jax.numpy as jnp
from dv2_jax.checkpoint.store import CheckpointStore
store = CheckpointStore(sys.argv[1], keep=2, asynchronous=sys.argv[2] == "async")
step = (store.latest_step() or 0) + 1
while True:
    print("saving", step, flush=True)
    weights = {f"layer{i}.kernel": jnp.full((512, 1024), step * 10.0 + i) for i in range(8)}
    store.save(step, weights, {"count": jnp.int32(step)}, {"next": step + 1})
    step += 1
"""


def a_state():
    params = {
        "text.kernel": jax.random.normal(jax.random.key(0), (8, 16)),
        "vision.bias": jnp.arange(8, dtype=jnp.bfloat16),
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), {"text.kernel": True, "vision.bias": False})
    )
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    return params, opt_state


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_weights_optimizer_state_and_iterator_bytes_come_back_bit_for_bit(tmp_path):
    """Catches: a lost optax leaf (masked, empty or counter), a widened dtype, bytes corrupted by JSON."""
    params, opt_state = a_state()
    extra = {"data": {"train": b"\x00\xff grain"}, "version": 7, "keys": [1, 2], "none": None}
    with CheckpointStore(tmp_path) as store:
        store.save(3, params, opt_state, extra)
    with CheckpointStore(tmp_path) as store:
        found = store.restore(*jax.eval_shape(lambda: (params, opt_state)))
        assert store.extra() == extra
        cast = store.restore_params({k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in params.items()})
    assert found.step == 3 and found.extra == extra
    same((found.params, found.opt_state), (params, opt_state))
    assert {leaf.dtype for leaf in cast.values()} == {jnp.dtype(jnp.bfloat16)}


def test_the_newest_are_kept_and_one_is_chosen_by_its_step(tmp_path):
    params, opt_state = {"w": jnp.zeros(2)}, {}
    with CheckpointStore(tmp_path, keep=2) as store:
        for step in (1, 2, 10):
            store.save(step, {"w": jnp.full(2, float(step))}, opt_state, {})
        assert store.steps() == [2, 10] and store.latest_step() == 10
        assert float(store.restore(params, opt_state).params["w"][0]) == 10.0
        assert float(store.restore(params, opt_state, step=2).params["w"][0]) == 2.0
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 1 .*\[2, 10\]"):
            store.restore(params, opt_state, step=1)
        with pytest.raises(ValueError, match="already has a checkpoint of step 10"):
            store.save(10, params, opt_state, {})


def test_a_checkpoint_of_another_model_is_refused_with_the_names(tmp_path):
    """Catches: a silent cast, a truncated array, and a parameter that would keep its random initialization."""
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2), "c": jnp.zeros(2)}, {}, {})
        with pytest.raises(ValueError) as error:
            store.restore({"a": jnp.zeros((4, 2)), "b": jnp.zeros(2, jnp.bfloat16), "d": jnp.zeros(1)}, {})
    for words in (
        "a has shape (4, 2), saved (3, 2)",
        "b is bfloat16, saved float32",
        "d is not in the checkpoint",
        "c is only in the checkpoint",
    ):
        assert words in str(error.value)


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    with CheckpointStore(tmp_path / "new") as store:
        assert store.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no checkpoint in"):
            store.restore({}, {})


def incomplete_saves(directory: Path) -> list[Path]:
    return list(directory.glob("*.orbax-checkpoint-tmp*"))


def kill_during_a_save(directory: Path, mode: str) -> int:
    """Kill a process that saves step after step while a save is incomplete; returns that step (the third or later)."""
    for _ in range(5):  # the kill may come just after the rename
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(directory), mode],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if any(int(path.name.split(".")[0]) > 2 for path in incomplete_saves(directory)):
                    break
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if left := incomplete_saves(directory):
            return int(left[0].name.split(".")[0])
    raise AssertionError("no half-written checkpoint was ever left")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_killed_save_is_never_listed_and_the_previous_checkpoint_is_intact(tmp_path, mode):
    """Catches: a checkpoint listed before it is complete, and an incomplete one that is never deleted."""
    half = kill_during_a_save(tmp_path, mode)
    weights = {f"layer{i}.kernel": jax.ShapeDtypeStruct((512, 1024), jnp.float32) for i in range(8)}
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest_step() == half - 1
        newest = store.restore(weights, {"count": jax.ShapeDtypeStruct((), jnp.int32)})
        assert newest.extra == {"next": half} and int(newest.opt_state["count"]) == half - 1
        for i in range(8):
            assert bool((newest.params[f"layer{i}.kernel"] == (half - 1) * 10.0 + i).all())
        assert not incomplete_saves(tmp_path)
        store.save(half, newest.params, newest.opt_state, {})  # the run resumes with the lost step
        store.wait()
        assert store.latest_step() == half


def test_a_checkpoint_of_one_mesh_is_restored_onto_another(tmp_path):
    """Catches: values permuted when the number of devices changes between save and restore."""
    program = """
import sys, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from dv2_jax.checkpoint.store import CheckpointStore
mesh = Mesh(jax.devices(), "fsdp")
sharding = NamedSharding(mesh, P("fsdp"))
with CheckpointStore(sys.argv[1]) as store:
    if sys.argv[2] == "save":
        store.save(1, {"w": jax.device_put(jnp.arange(24.0).reshape(8, 3), sharding)}, {}, {})
    else:
        w = store.restore({"w": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding)}, {}).params["w"]
        assert w.sharding == sharding, w.sharding
        assert (jax.device_get(w).ravel() == range(24)).all()
"""
    for devices, verb in ((2, "save"), (8, "restore")):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), verb],
            env=environment,
            timeout=120,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_saving_replicated_arrays_compiles_nothing(tmp_path):
    """Catches: a save that compiles slices of replicated arrays in the middle of a run."""
    program = """
import sys, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.telemetry.recompilation import RecompilationCounter
replicated = NamedSharding(Mesh(jax.devices(), "data"), P())
weights = {"w": jax.device_put(jnp.ones((512, 1024)), replicated)}
moments = {"m": jax.device_put(jnp.ones((512, 1024)), replicated)}
counter = RecompilationCounter()
with CheckpointStore(sys.argv[1]) as store:
    store.save(1, weights, moments, {})
assert not counter.count, counter.names
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
