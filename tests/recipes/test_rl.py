"""Tests of the RL recipe with the real engine and tools service: stages, resuming, interrupts and summary."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from dv2_jax.config import ConfigError, EvalConfig, RLConfig
from dv2_jax.recipes import rl
from dv2_jax.recipes import run as run_module
from dv2_jax.rewards import JudgeOutage
from dv2_jax.telemetry.metrics_writer import read_metrics
from dv2_jax.telemetry.trajectories import loss_mask, read_trajectories
from tests.recipes.small_rl import one_layer_policy, reward_by_length, small_config, weights


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


def run_rl(config, reward_fn=reward_by_length):
    """Run the recipe with the small policy and a reward that a random policy can learn."""
    return rl.run_rl(config, reward_fn, one_layer_policy(config))


@pytest.mark.long
def test_a_run_writes_its_outputs_and_a_killed_run_resumes(config):
    """Catches: missing stages, recompilation after the first step, a log-prob gap between engine and trainer; on resume:
    prompts skipped or drawn twice, trajectories trained twice, metrics of lost steps kept."""
    summary = run_rl(config)
    directory = Path(config.run.root) / "rl"
    assert json.loads((directory / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert [(s["title"], s["init"]) for s in summary["stages"]] == [("random", "random"), ("RL", "random")]
    for stage in ("initial", "final"):
        assert {"accuracy", "tool_calls", "tool_rate", "reward"} <= set(summary[stage]["overall"])
        assert len(list(read_trajectories(directory / "trajectories", stage))) == 3
    assert summary["recompilations"] == 0 and summary["logprob_gap_max"] <= 1e-4 and not summary["interrupted"]
    rows = read_metrics(directory)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["logprob_gap_max"] <= 1e-4 and row["grad_norm"] > 0 for row in rows)
    assert all(row["engine/sampled_tokens"] > 0 and row["engine/preemptions"] == 0 for row in rows)
    assert (directory / "report" / "index.html").exists() and (directory / "export" / "config.json").exists()
    trained = list(read_trajectories(directory / "trajectories", "train"))
    assert len(trained) == 3 * 8 and len({t["id"] for t in trained}) == 24
    assert {t["step"]: set(t["versions"]) for t in trained} == {1: {0}, 2: {1}, 3: {2}}
    assert all(sum(loss_mask(t)) == len(t["logprobs"]) > 0 for t in trained)

    # Killed in step 3, after its trajectories were written and before its checkpoint.
    killed = replace(config, run=replace(config.run, name="killed"))

    class Killed(BaseException):
        pass

    with pytest.MonkeyPatch.context() as patch:
        written = run_module.MetricsWriter.write

        def write(self, step, values):
            written(self, step, values)
            if step == 3:
                raise Killed

        patch.setattr(run_module.MetricsWriter, "write", write)
        with pytest.raises(Killed):
            run_rl(killed)
    run_rl(killed)
    again = list(read_trajectories(Path(config.run.root) / "killed" / "trajectories", "train"))
    assert [t["id"] for t in again] == [t["id"] for t in trained]
    assert [t["token_ids"] for t in again] == [t["token_ids"] for t in trained]
    assert [row["reward"] for row in read_metrics(Path(config.run.root) / "killed")] == [row["reward"] for row in rows]
    (step, found), (_, expected) = weights(killed), weights(config)
    assert step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_an_interrupt_leaves_a_checkpoint_and_no_process(config):
    """Catches: Ctrl-C that loses the step, orphaned processes of the tools service, a resumed run that repeats a step."""
    before = children()
    with pytest.MonkeyPatch.context() as patch:
        written = run_module.MetricsWriter.write

        def write_and_interrupt(self, step, values):
            written(self, step, values)
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(run_module.MetricsWriter, "write", write_and_interrupt)
        summary = run_rl(config)
    assert summary["interrupted"] and summary["steps"] == 1 and "final" not in summary
    assert children() <= before
    assert weights(config)[0] == 1
    summary = run_rl(config)
    assert not summary["interrupted"] and {"initial", "final"} <= set(summary)
    assert [row["step"] for row in read_metrics(Path(config.run.root) / "rl")] == [1, 2, 3]


def test_an_outage_of_the_judge_leaves_a_checkpoint(config):
    """Catches: an outage that ends in an export with exit code 0; prompts of the failed step skipped after resuming."""
    calls = []

    def compute_rewards(trajectories, tokenizer, reward_config):
        calls.append([t.id for t in trajectories])
        if len(calls) == 2:
            raise JudgeOutage("the judge has given no verdict for 300 s")
        reward_by_length(trajectories, tokenizer, reward_config)

    config = replace(config, eval=EvalConfig(stages=()), rl=replace(config.rl, steps=2, checkpoint_every=9))
    with pytest.raises(JudgeOutage, match="no verdict for 300 s. Stopped after step 1 with a checkpoint"):
        run_rl(config, compute_rewards)
    directory = Path(config.run.root) / "rl"
    assert weights(config)[0] == 1 and not (directory / "export").exists()
    run_rl(config, compute_rewards)
    assert calls[2] == calls[1] and [row["step"] for row in read_metrics(directory)] == [1, 2]


def test_dynamic_sampling_replaces_zero_variance_groups(config):
    """Catches: zero-variance groups kept although others were sampled, or an endless loop if there are no others."""
    rewards = iter([0.0] * 8 + [0.0, 1.0, 0.0, 1.0] + [1.0] * 4 + [0.0] * 8 + [0.0] * 100)

    def compute_rewards(trajectories, tokenizer, reward_config):
        for t in trajectories:
            t.reward = next(rewards)
            t.reward_parts = {"accuracy": t.reward, "format": 0.0, "penalty": 0.0, "total": t.reward}

    dynamic = replace(config.rl, dynamic_sampling=True, max_sampling_rounds=3, steps=1)
    run_rl(replace(config, rl=dynamic, eval=EvalConfig(stages=())), compute_rewards)
    (row,) = read_metrics(Path(config.run.root) / "rl")
    assert row["prompts_drawn"] == 6 and row["groups_informative"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rl": RLConfig(group_size=1)}, "rl.group_size = 1"),
        ({"rl": RLConfig(row_tokens=128)}, "exceeds rl.row_tokens = 128"),
        ({"rl": RLConfig(prompts_per_step=3, minibatches=2)}, "no multiple of rl.minibatches = 2"),
        ({"eval": EvalConfig(stages=("bass",))}, "eval.stages"),
    ],
)
def test_an_invalid_configuration_is_refused_with_its_key(config, change, message):
    """Catches: an invalid setting that fails only after minutes, or in an assertion without its key."""
    with pytest.raises(ConfigError, match=message):
        rl.run_rl(replace(config, **change))


def children() -> set[int]:
    """Return the ids of the live child processes."""
    mine = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            mine.add(int(status.parent.name))
    return mine
