"""Tests of the RL recipe on two hosts (two processes of two devices each) against one host with four devices."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dv2_jax.config import MeshConfig
from dv2_jax.telemetry.metrics_writer import read_metrics
from dv2_jax.telemetry.trajectories import read_trajectories
from tests.host_processes import run_on_hosts
from tests.recipes.rl_on_hosts import config_of
from tests.recipes.small_rl import weights


def run(root: Path, *arguments: str, hosts: int) -> list[str]:
    """Run the recipe with `hosts` processes; returns the last line printed by each."""
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.recipes.rl_on_hosts", str(root), *arguments]
    return [out.splitlines()[-1] for out in run_on_hosts(command, hosts=hosts, devices_each=4 // hosts)]


@pytest.mark.long
def test_two_hosts_train_like_one_and_stop_and_resume_together(tmp_path):
    """Catches: sampling that depends on the number of hosts, statistics or gradients of one host only, rows on another
    host's devices, deadlocks between hosts, and Ctrl-C that reaches only one host."""
    assert run(tmp_path / "one", hosts=1) == ["steps 2, recompilations 0"]
    assert run(tmp_path / "two", "interrupt=1", hosts=2) == ["steps 1, recompilations 0"] * 2
    assert run(tmp_path / "two", hosts=2) == ["steps 2, recompilations 0"] * 2

    one, two = (tmp_path / name / "rl" for name in ("one", "two"))
    same = ["loss", "grad_norm", "reward", "response_tokens", "entropy", "groups_informative", "prompts_drawn", "n"]
    for expected, found in zip(read_metrics(one), read_metrics(two), strict=True):
        assert found["logprob_gap_max"] <= 1e-4
        for name in same:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert (two / "evaluations" / "final.json").read_text() == (one / "evaluations" / "final.json").read_text()

    trained = {t["id"]: t for t in read_trajectories(one / "trajectories", "train")}
    kept = list(read_trajectories(two / "trajectories", "train"))
    assert len(trained) == 32 and len(kept) == 16
    for trajectory in kept:
        expected = trained[trajectory["id"]]
        assert trajectory["token_ids"] == expected["token_ids"]
        assert trajectory["advantage"] == pytest.approx(expected["advantage"], rel=1e-9)

    (step, found), (_, expected) = (
        weights(replace(config_of(tmp_path / name), mesh=MeshConfig())) for name in ("two", "one")
    )
    assert step == 2
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_gspo_with_a_kl_term_trains_on_two_hosts_as_on_one(tmp_path):
    """Catches: a sequence's importance ratio, or its KL to the reference, over the rows of one host only."""
    assert run(tmp_path / "one", "gspo", hosts=1) == ["steps 2, recompilations 0"]
    assert run(tmp_path / "two", "gspo", hosts=2) == ["steps 2, recompilations 0"] * 2
    one, two = (read_metrics(tmp_path / name / "rl") for name in ("one", "two"))
    assert one[0]["kl_reference"] <= 1e-6 < 1e-4 < one[1]["kl_reference"]
    for expected, found in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "kl_reference", "reward", "entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
