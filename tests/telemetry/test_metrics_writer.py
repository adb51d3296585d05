"""Tests that metric rows survive kills and resumed runs and are strict JSON."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.telemetry.metrics_writer import FILE, MetricsWriter, read_metrics


def test_each_row_is_on_disk_before_the_next_step_and_is_strict_json(tmp_path):
    """Catches buffered rows (a kill would lose them) and the word NaN, which is no JSON."""
    metrics = MetricsWriter(tmp_path)
    metrics.write(1, {"loss": jnp.float32(0.5), "rows": np.int64(3), "stage": "cold_start", "finite": math.inf})
    (line,) = (tmp_path / FILE).read_text().splitlines()
    row = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert row.pop("time") > 1.7e9
    assert row == {"step": 1, "loss": 0.5, "rows": 3, "stage": "cold_start", "finite": None, "not_finite": ["finite"]}
    metrics.close()


def test_a_continued_run_replaces_the_rows_that_it_does_again(tmp_path):
    """Catches a step that is counted twice in the curve after a kill, and a torn last line that hides what follows."""
    with MetricsWriter(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"run": 1})
    with open(tmp_path / FILE, "a") as file:
        file.write('{"step": 6, "ru')
    with MetricsWriter(tmp_path, first_step=4) as metrics:
        metrics.write(4, {"run": 2})
    assert [(row["step"], row["run"]) for row in read_metrics(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_only_scalars_are_taken(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        with pytest.raises(TypeError, match=r"'grad' has shape \(2,\)"):
            metrics.write(1, {"grad": np.zeros(2)})
        with pytest.raises(TypeError, match="'loss' is a list"):
            metrics.write(1, {"loss": [1.0]})


def test_processes_other_than_0_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", tensorboard=True, enabled=False) as metrics:
        metrics.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_numbers_too(tmp_path):
    """Read back with TensorBoard's own record format: length, checksum, event protocol buffer."""
    from tensorboardX.proto.event_pb2 import Event

    with MetricsWriter(tmp_path, tensorboard=True) as metrics:
        metrics.write(7, {"reward": 0.25, "stage": "rl"})
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
    assert found == {"reward": (7, 0.25)}


def test_asking_for_wandb_without_the_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(RuntimeError, match=r"pip install 'dv2_jax\[wandb\]'"):
        MetricsWriter(tmp_path, wandb_project="mine")


def test_rewind__rows_of_repeated_steps_are_removed(tmp_path):
    """Catches: two rows of one step after a fall back to an older checkpoint."""
    with MetricsWriter(tmp_path, first_step=1) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": float(step)})
        metrics.rewind(2)
        metrics.write(2, {"loss": 20.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 20.0)]
