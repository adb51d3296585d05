"""Compares aggregated results with numbers counted by hand."""

import dataclasses
import json
import math

import pytest

from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import RewardConfig
from dv2_jax.evaluation.statistics import wilson_interval
from dv2_jax.evaluation.summary import summarize
from dv2_jax.rewards import compute_rewards


@pytest.fixture
def scored(trajectories, tokenizer):
    rows = [dataclasses.replace(trajectory) for trajectory in trajectories]
    compute_rewards(rows, tokenizer, RewardConfig())
    return rows


def test_counts_per_skill_and_overall_are_those_a_reader_would_count(scored):
    summary = summarize(scored).summary()
    assert list(summary) == ["overall", "perception", "reasoning", "search", "plain"]
    overall, perception = summary["overall"], summary["perception"]
    assert (overall["n"], perception["n"]) == (5, 2)
    assert overall["accuracy"] == pytest.approx(4 / 5) and perception["accuracy"] == pytest.approx(1 / 2)
    assert overall["tool_calls"] == pytest.approx((1 + 2 + 1 + 1 + 0) / 5) and perception["tool_calls"] == 1.5
    assert overall["tool_rate"] == pytest.approx(4 / 5)
    assert overall["code_rate"] == pytest.approx(3 / 5)
    assert overall["search_rate"] == pytest.approx(1 / 5)
    assert overall["finish"] == {"answer": 5}
    assert overall["accuracy_interval"] == list(wilson_interval(4, 5))
    # two crops came back, one cell failed, one sum, one search
    assert overall["tool_kinds"] == pytest.approx(
        {"crop": 0.4, "numerical": 0.2, "mark": 0.0, "other": 0.2, "image_search": 0.0, "search": 0.2}
    )
    # search pays 10 % of its accuracy for the call; the wrong one keeps its format
    assert summary["search"]["reward"] == pytest.approx(0.8 * 0.9 + 0.2)
    assert perception["reward"] == pytest.approx((1.0 + 0.2) / 2)
    assert json.loads(json.dumps(summary)) == summary


def test_the_overall_result_weighs_questions_not_skills(scored):
    summary = summarize(scored).summary()
    skills = [row for name, row in summary.items() if name != "overall"]
    for key in ("accuracy", "tool_calls", "tool_rate", "reward", "format_rate", "response_tokens"):
        weighted = math.fsum(row[key] * row["n"] for row in skills) / sum(row["n"] for row in skills)
        assert summary["overall"][key] == pytest.approx(weighted)


def test_a_lost_trajectory_is_neither_right_nor_wrong(scored):
    lost = dataclasses.replace(scored[1], finish=Finish.LOST, dropped=True, reward=None, reward_parts={})
    result = summarize([scored[0], lost])
    assert (result.overall.n, result.overall.dropped, result.overall.accuracy) == (1, 1, 1.0)
    assert len(result.trajectories) == 2


def test_a_skill_of_which_everything_was_lost_is_reported_as_unknown(scored):
    lost = dataclasses.replace(scored[0], finish=Finish.LOST, dropped=True, reward=None, reward_parts={})
    only = summarize([lost]).overall
    assert (only.n, only.dropped, only.accuracy_interval) == (0, 1, (0.0, 1.0))
