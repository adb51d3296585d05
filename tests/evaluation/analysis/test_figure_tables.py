"""Tests the numbers of the figures on records written by hand."""

import math

import pytest

from dv2_jax.evaluation.analysis import figure_tables as tables
from dv2_jax.evaluation.analysis.answer_rows import read_run
from dv2_jax.evaluation.statistics import wilson_interval
from tests.evaluation.analysis.hand_made import answered, compute, crop, image_search, record, said, search, write_run


@pytest.fixture
def run(tmp_path):
    made = [
        record("a", crop(), crop(), said(), right=True, answer=answered("a")),
        record("b", compute(), search(), said(), answer=answered("b")),
        record("c", said(), answer=answered("c")),
        record("d", said(), answer=answered("d")),
        record("e", image_search(), said(), right=None, dropped=True, answer=answered("e")),
    ]
    stages = [{"name": "evaluate", "title": "my policy", "init": "x"}]
    return read_run(write_run(tmp_path, {"evaluate": made}, stages=stages, evaluate={"overall": {}}))


def test_figure_6_counts_the_calls_of_answers_and_names_the_papers_shares(run):
    """Catches calls of a failed answer in the shares, and a share of answers instead of calls."""
    rows = {row["kind"]: row for row in tables.tool_kinds_table(run).dicts()}
    assert {kind: (row["calls"], row["share"]) for kind, row in rows.items()} == {
        "crop": (2, 0.5), "numerical": (1, 0.25), "search": (1, 0.25),
    }  # fmt: skip
    assert (rows["crop"]["paper cold start %"], rows["crop"]["paper RL %"]) == (90, 92)
    assert rows["search"]["paper RL %"] is None  # the paper's pie of V* has no search
    assert rows["crop"]["benchmark"] == "vstar"


def test_figure_7_is_the_share_of_answers_with_a_call(run):
    (row,) = tables.tool_rate_table(run).dicts()
    assert (row["answers"], row["with a call"], row["share"]) == (4, 2, 0.5)
    assert (row["interval low"], row["interval high"]) == pytest.approx(wilson_interval(2, 4))
    assert (row["paper cold start %"], row["paper RL %"]) == (92.7, 92.1)


def test_errors_add_up_to_the_wrong_answers(run):
    rows = tables.error_table(run).dicts()
    assert {row["class"]: row["answers"] for row in rows} == {"no_call": 2, "human": 1}
    assert {row["class"]: row["examples"] for row in rows} == {"no_call": "c d", "human": "b"}
    assert sum(row["share of wrong"] for row in rows) == pytest.approx(1)
    assert [row["question_id"] for row in tables.error_cases_table(run).dicts()] == ["b", "c", "d"]


def steps_of(tmp_path, metrics):
    made = [
        record("a", crop(), said(), step=1, tokens=4, reward=1.0),
        record("b", said(), step=1, tokens=8, reward=0.0),
        record("a", crop(), compute(), compute(), said(), step=2, tokens=6, reward=0.5),
    ]
    return read_run(write_run(tmp_path, {"train": made}, metrics=metrics))


def test_figures_8_and_10_come_from_the_stored_trajectories_of_older_runs(tmp_path):
    """Catches a sample standard deviation, and steps without calls drawn as shares of 0."""
    run = steps_of(tmp_path, [{"step": 1, "reward": 0.9}])
    first, second = tables.step_table(run).dicts()
    assert (first["trajectories"], first["source"]) == (2, "stored")
    assert (first["response tokens mean"], first["response tokens std"]) == (6, 2)
    assert (first["reward mean"], first["reward std"]) == (0.5, 0.5)
    assert (first["tool calls mean"], first["tool calls std"]) == (0.5, 0.5)
    assert (second["tool calls mean"], second["tool calls std"]) == (3, 0)
    shares = {(row["step"], row["kind"]): row["share"] for row in tables.step_kinds_table(run).dicts()}
    assert shares == {(1, "crop"): 1.0, (2, "crop"): pytest.approx(1 / 3), (2, "numerical"): pytest.approx(2 / 3)}


def test_figure_8_of_an_evaluation_has_its_policies_in_place_of_steps(tmp_path):
    """Catches a figure without data, and answers without tools or of the infrastructure that count in it."""
    made = {
        "base": [record("a", said(), tokens=4, reward=0.0), record("b", said(), tokens=8, reward=1.0)],
        "evaluate": [record("a", crop(), said(), tokens=6, reward=0.5), record("b", dropped=True)],
        "no_tools": [record("a", crop("refused"), said(), tokens=2, reward=0.0)],
    }
    stages = [{"name": "base", "title": "base"}, {"name": "evaluate", "title": "RL"}]
    run = read_run(write_run(tmp_path, made, stages=stages, base={}, evaluate={}))
    table = tables.step_table(run)
    assert table.title.startswith("Figure 8: evaluated policies")
    first, second = table.dicts()
    assert (first["step"], first["policy"], first["source"], first["trajectories"]) == (0, "base", "evaluated", 2)
    assert (first["response tokens mean"], first["response tokens std"], first["reward mean"]) == (6, 2, 0.5)
    assert (second["step"], second["policy"], second["trajectories"], second["tool calls mean"]) == (1, "RL", 1, 1.0)


def test_figures_8_and_10_use_the_metrics_of_all_trajectories_where_they_are_logged(tmp_path):
    numbers = {"n": 128, "response_tokens": 70.0, "response_tokens_std": 9.0, "reward": 0.6, "reward_std": 0.2}
    metrics = numbers | {"tool_calls": 1.5, "tool_calls_std": 0.5, "tool_kinds/crop": 0.75, "tool_kinds/search": 0.25}
    run = steps_of(tmp_path, [metrics | {"step": 1}, {"step": 2, "reward": 1.0, "tool_kinds/crop": 0.0}])
    first, second = tables.step_table(run).dicts()
    assert (first["source"], first["trajectories"], first["tool calls std"]) == ("all", 128, 0.5)
    assert second["source"] == "stored"
    shares = [(row["step"], row["kind"], row["share"]) for row in tables.step_kinds_table(run).dicts()]
    assert shares == [(1, "crop", 0.75), (1, "search", 0.25)]


def test_metrics_of_a_step_have_the_spread_over_its_trajectories():
    """Catches a spread that counts trajectories lost to the infrastructure."""
    from dv2_jax.recipes.rl_rollout import rollout_metrics
    from dv2_jax.rollout.outcome import TrajectoryStats

    def stats(reward, calls, dropped=False):
        return TrajectoryStats("plain", dropped, reward, reward > 0.5, True, "answer", calls, {}, {}, 9, 3)

    row = rollout_metrics([stats(1.0, 3), stats(0.0, 1), stats(0.0, 9, dropped=True)])
    assert (row["reward_std"], row["tool_calls_std"], row["response_tokens_std"]) == (0.5, 1.0, 0.0)
    assert math.isclose(row["tool_calls"], 2.0)
