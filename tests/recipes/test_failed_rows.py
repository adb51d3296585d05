"""A row that passes the check of its file and fails during RL costs its group, not the run."""

from dataclasses import replace

import numpy as np
import pytest

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import EvalConfig, TaskConfig
from dv2_jax.data.images import ImageError
from dv2_jax.recipes import rl
from dv2_jax.telemetry.metrics_writer import read_metrics
from tests.data.row_cases import rl_row, user, write_jsonl
from tests.recipes.small_rl import one_layer_policy, reward_by_length, small_config, weights


@pytest.mark.slow
def test_a_failing_row_is_dropped_and_counted_and_its_step_goes_on(tmp_path, monkeypatch):
    """Catches: a run that ends at the first bad row, or draws it again after resuming; a step without any usable row
    that makes the weights NaN."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [rl_row(prompt=[user(f"What is {i}?")], images=[]) for i in range(9)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = small_config(tmp_path)
    config = replace(
        config,
        task=TaskConfig(source=str(path), eval_size=1),
        eval=EvalConfig(stages=()),
        rl=replace(config.rl, steps=4),  # 8 rows in steps of 2: each is drawn once
    )
    original = PromptEncoder.encode_question
    order = []

    def encode_question(self, question):
        order.append(question.id)
        first_step = set(order[:1] + order[4:5])
        if question.id in first_step or question.id == "rows:3":
            raise ImageError("its image is gone")
        return original(self, question)

    monkeypatch.setattr(PromptEncoder, "encode_question", encode_question)
    summary = rl.run_rl(config, reward_by_length, one_layer_policy(config))
    metrics = read_metrics(tmp_path / "rl")
    failed = {question for question in (order[0], order[4], "rows:3")}
    assert summary["steps"] == 4 and not summary["interrupted"] and summary["recompilations"] == 0
    assert metrics[0]["rows_failed"] == 2 and sum(row["rows_failed"] for row in metrics) == len(failed)
    assert sum(row["n"] for row in metrics) == 4 * (8 - len(failed))
    assert all(np.isfinite(row["loss"]) for row in metrics)
    assert all(np.isfinite(value).all() for value in weights(config)[1].values())
