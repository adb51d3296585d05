"""Tests of RL with a KL term on meshes of four virtual devices against one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dv2_jax.telemetry.metrics_writer import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def metrics_of_run(root: Path, *sizes: int) -> list[dict]:
    """Run the recipe on a mesh of these sizes (data, fsdp, context); returns the metrics of its steps."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={sizes[0] * sizes[1] * sizes[2]}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.recipes.rl_with_kl", str(root), *map(str, sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.splitlines()[-1] == "steps 3, recompilations 0"
    assert "algorithm dapo: loss ppo_clip, advantage grpo, aggregation token_mean, clip_low 0.2" in done.stdout
    stored = json.loads((root / "rl" / "config.json").read_text())["rl"]
    assert (stored["loss"], stored["aggregation"], stored["clip_high"]) == ("ppo_clip", "token_mean", 0.3)
    return read_metrics(root / "rl")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return metrics_of_run(tmp_path_factory.mktemp("one"), 1, 1, 1)


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_a_kl_term_runs_on_a_mesh_without_recompilation_and_as_on_one_device(tmp_path, one_device, sizes):
    """Catches: a reference that is scored without the mesh, log-probs whose sharding or presence differs from the
    warm-up's batches (each step would compile again), a KL metric that is not logged, and a reference that moves along
    with the policy, values of the algorithm that are neither printed nor stored."""
    rows = metrics_of_run(tmp_path, *sizes)
    assert len(rows) == 3
    for one, mesh in zip(one_device, rows, strict=True):
        for metric in ("loss", "grad_norm", "kl_reference", "entropy", "reward"):
            assert mesh[metric] == pytest.approx(one[metric], rel=1e-3, abs=1e-6), metric
    first, second, third = (row["kl_reference"] for row in rows)
    assert 0 <= first <= 1e-6, "before the first step the policy is the reference"
    assert 1e-4 < second < third
