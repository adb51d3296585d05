"""Tests of damaged checkpoints and failed saves: one sentence, and the other checkpoints stay valid."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.checkpoint.damage import LOG, CheckpointDamaged, CheckpointMismatch
from dv2_jax.checkpoint.store import CheckpointStore

WEIGHTS = {f"layer{i}.kernel": jnp.arange(64 * 256.0).reshape(64, 256) + i for i in range(3)}
TARGETS = jax.eval_shape(lambda: WEIGHTS)
MOMENTS = {"count": jax.ShapeDtypeStruct((), jnp.int32)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Returns a store with checkpoints of steps 7 and 8."""
    folder = tmp_path_factory.mktemp("original") / "checkpoints"
    with CheckpointStore(folder) as store:
        for step in (7, 8):
            store.save(step, WEIGHTS, {"count": jnp.int32(step)}, {"next": step})
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


def cut(folder: Path, pattern: str) -> None:
    """Truncates the largest file that matches to half its size."""
    largest = max(folder.glob(pattern), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


# Damage of checkpoint 8, or an additional checkpoint 9 → the step that cannot be read, and words of the reason.
DAMAGE = {
    "truncated array": (lambda f: cut(f, "8/params/ocdbt.process_0/d/*"), 8, "params/"),
    "truncated optimizer state": (lambda f: cut(f, "8/opt_state/**/d/*"), 8, "opt_state/"),
    "truncated manifest": (lambda f: cut(f, "8/params/manifest.ocdbt"), 8, "params/manifest.ocdbt"),
    "truncated metadata": (lambda f: cut(f, "8/params/_METADATA"), 8, "params/_METADATA is truncated"),
    "truncated extra": (lambda f: (f / "8/extra/metadata").write_text('{"ne'), 8, "extra/metadata is truncated"),
    "missing item": (lambda f: shutil.rmtree(f / "8/opt_state"), 8, "opt_state is missing"),
    "missing parameters": (lambda f: shutil.rmtree(f / "8/params"), 8, "params is missing"),
    "empty folder": (lambda f: (f / "9").mkdir(), 9, "the folder is empty"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_restore__damage_is_one_line_and_the_checkpoint_before_it_continues(folder, name, capfd):
    """Catches: pages of TensorStore's log, an older checkpoint that is used silently, and a step that cannot be saved
    again because its damaged folder is still there."""
    damage, step, reason = DAMAGE[name]
    damage(folder)
    lines: list[str] = []
    with CheckpointStore(folder) as store:
        with pytest.raises(CheckpointDamaged) as error:
            store.restore(TARGETS, MOMENTS)
        assert f"{folder}/{step} cannot be read: {reason}" in str(error.value) and "\n" not in str(error.value)
        found = store.restore_newest_readable(TARGETS, MOMENTS, lines.append)
        assert found.step == step - 1 and found.extra == {"next": step - 1}
        np.testing.assert_array_equal(found.params["layer2.kernel"], WEIGHTS["layer2.kernel"])
        (line,) = lines
        assert line.startswith("WARNING: ") and f"{step}.damaged" in line and "\n" not in line
        store.save(step, WEIGHTS, {"count": jnp.int32(step)}, {"next": step})
        assert store.steps() == sorted({7, 8, step})
    assert (folder / f"{step}.damaged").is_dir()
    assert (folder.parent / LOG).stat().st_size > 200
    printed = capfd.readouterr()
    assert "tensorstore" not in (printed.out + printed.err).lower()


def test_restore__without_a_readable_checkpoint_nothing_is_renamed(folder):
    """Catches: a run that starts over silently, or folders renamed by a reader that cannot read any of them."""
    shutil.rmtree(folder / "7" / "extra")
    shutil.rmtree(folder / "8" / "params")
    with CheckpointStore(folder) as store:
        with pytest.raises(CheckpointDamaged, match=f"params is missing.*extra is missing.*remove {folder} to start"):
            store.restore_newest_readable(TARGETS, MOMENTS, print)
        assert store.steps() == [7, 8]


def test_restore__another_model_is_no_damage(folder):
    """Catches: good checkpoints that are set aside because the configuration changed."""
    others = dict(TARGETS) | {"layer0.kernel": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
    with CheckpointStore(folder) as store:
        with pytest.raises(CheckpointMismatch, match="layer0.kernel has shape"):
            store.restore_newest_readable(others, MOMENTS, print)
        with pytest.raises(CheckpointMismatch, match="optimizer state"):
            store.restore_newest_readable(TARGETS, MOMENTS | {"mu": MOMENTS["count"]}, print)
        assert store.steps() == [7, 8]


def test_restore_params__a_reader_is_not_given_older_weights(folder):
    """Catches: an evaluation or export of other weights than those of the newest checkpoint."""
    cut(folder, "8/params/ocdbt.process_0/d/*")
    with CheckpointStore(folder, read_only=True) as store:
        with pytest.raises(CheckpointDamaged, match=f"the one before it is {folder}/7"):
            store.restore_params(TARGETS)
        assert store.restore_params(TARGETS, 7)


FULL_DISK = """
import json, resource, sys
import jax, jax.numpy as jnp
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import one_line_errors
weights = {"w": jax.random.normal(jax.random.key(0), (512, 1024))}
with one_line_errors(), CheckpointStore(sys.argv[1], asynchronous=sys.argv[2] == "async") as store:
    store.save(1, weights, {}, {})
    store.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # a file cannot grow further, as on a full disk
    store.save(2, weights, {}, {})
    store.wait()
"""


def test_what_a_thread_of_a_save_logs_before_it_is_raised_is_not_printed():
    """The thread may log between `save` and `wait`, when nothing collects its records."""
    log, seen = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    log.addHandler(handler)
    try:
        log.error("[process=%d] _SignalingThread.run() raised an exception: %s", 0, "File too large")
        log.error("another error")
    finally:
        log.removeHandler(handler)
    assert seen == ["another error"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_save__a_full_disk_is_one_sentence_and_the_previous_checkpoint_stays(tmp_path, mode):
    """Catches: a thousand lines with the cause in the middle, exit code 0, an incomplete folder that fills the disk."""
    folder = tmp_path / "checkpoints"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), mode],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the checkpoint of step 2 cannot be saved" in line and "File too large" in line
    assert "the checkpoint of step 1 is intact" in line
    assert [path.name for path in folder.iterdir()] == ["1"]
    with CheckpointStore(folder) as store:
        found = store.restore({"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}, {})
    np.testing.assert_array_equal(found.params["w"], jax.random.normal(jax.random.key(0), (512, 1024)))
