"""Training, report and chat with a fourth tool from outside the package, on the real engine.

The tool is `tests/extension/dry_run_tool.py`; only `agent.tools` names it.
"""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest

from dv2_jax import chat
from dv2_jax.config import AgentConfig, EvalConfig, ModelSource, TaskConfig
from dv2_jax.policy import load_policy
from dv2_jax.recipes import rl
from dv2_jax.report.page import render
from dv2_jax.telemetry.metrics_writer import read_metrics
from dv2_jax.telemetry.trajectories import read_trajectories
from dv2_jax.toy.tasks import make_questions
from tests.recipes.small_rl import small_config

TOOLS = ("tests.extension.dry_run_tool:DryRunTool", *AgentConfig().tools)


def reward_every_other(trajectories, tokenizer, config):
    """Reward every other trajectory, so that each group has advantages."""
    for index, t in enumerate(trajectories):
        t.reward = float(index % 2)
        t.reward_parts = {"accuracy": t.reward, "format": 0.0, "penalty": 0.0, "total": t.reward}


@pytest.mark.long
def test_a_tool_from_outside_is_trained_reported_and_chatted_with(tmp_path, monkeypatch):
    """Catches: a call that the engine does not stop at or the scheduler does not dispatch, a trajectory with it that
    cannot be packed or has no gradient, a checkpoint, report or chat that knows three tools only."""
    config = small_config(tmp_path)
    config = replace(
        config,
        model=ModelSource(init="package:cold_start"),
        agent=AgentConfig(tools=TOOLS, max_turns=3, max_turn_tokens=96, max_total_tokens=512),
        engine=replace(config.engine, page_size=512),  # one page per sequence: few programs to compile
        task=TaskConfig(skills=("perception",), train_size=8, eval_size=1),
        rl=replace(config.rl, steps=1, row_tokens=512),
        eval=EvalConfig(stages=()),
    )
    policy = load_policy(config)
    before = {name: np.asarray(value) for name, value in policy.load_weights(config.run.seed).items()}
    summary = rl.run_rl(config, reward_every_other, policy)

    run_dir = tmp_path / "rl"
    (row,) = read_metrics(run_dir)
    assert summary["steps"] == 1 and summary["recompilations"] == 0
    assert row["grad_norm"] > 0 and row["logprob_gap_max"] <= 1e-4
    calls = [
        (record, turn)
        for record in read_trajectories(run_dir / "trajectories", "train")
        for turn in record["turns"]
        if turn["kind"] == "dry_run"
    ]
    assert calls, "the policy did not crop"
    for record, turn in calls:
        assert turn["status"] == "ok" and "lines, not run" in turn["observation"]
        assert record["advantage"] != 0
    after = policy.load_weights(config.run.seed, f"checkpoint:{run_dir}")
    assert any(np.abs(np.asarray(after[name]) - value).max() > 0 for name, value in before.items())

    page = render(run_dir)
    assert 'data-tools="dry_run' in page and "describes a cell" in page

    question = make_questions("train", 1, 0, ("perception",))[0]
    (tmp_path / "own.png").write_bytes(question.images[0])
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        chat.main(
            [
                *(f"--image={tmp_path / 'own.png'}", f"--question={question.text}", f"--model={run_dir}"),
                *(f"--config.agent.tools={','.join(TOOLS)}", f"--image-folder={tmp_path / 'out'}"),
            ]
        )
    assert "dry run" in out.getvalue() and "lines, not run" in out.getvalue()
