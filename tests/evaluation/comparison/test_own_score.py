import json

import numpy as np
import pytest

from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, Benchmark, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.comparison.comparison_table import notes
from dv2_jax.evaluation.comparison.own_score import own_score_difference
from dv2_jax.evaluation.comparison.paired_runs import compare_runs
from dv2_jax.evaluation.comparison.stored_run import open_run
from dv2_jax.evaluation.statistics import Z95, ClusterTotals
from tests.evaluation.comparison.stored_evaluations import write_evaluation


class WorstOfThree(Benchmark):
    """The overall score is the share of templates with all three variants right."""

    name = "worst_of_three"

    def load(self, config, read):
        return []

    def aggregate(self, scores):
        return [ResultRow.from_statistic(OVERALL_ROW, scores, worst)]


def worst(scores):
    templates = {}
    for score in scores:
        templates.setdefault(score.cluster, []).append(score.value)
    return float(np.mean([min(values) for values in templates.values()])) if templates else None


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(BENCHMARKS.entries, WorstOfThree.name, WorstOfThree)


def drawn(generator, chance, templates=60):
    return [
        Score(float(generator.random() < chance), question_id=f"{t}-{v}", cluster=f"t{t}")
        for t in range(templates)
        for v in range(3)
    ]


def test_the_interval_is_that_of_the_differences_per_template():
    """Catches an interval of the mean over variants: the worst of three varies more."""
    generator = np.random.default_rng(0)
    a, b = drawn(generator, 0.7), drawn(generator, 0.9)
    found = own_score_difference("worst_of_three", a, b)
    each = np.array([min(s.value for s in b[i : i + 3]) - min(s.value for s in a[i : i + 3]) for i in range(0, 180, 3)])
    error = ClusterTotals.of(each.tolist(), range(60)).standard_error()
    assert found.difference == pytest.approx(each.mean())
    assert (found.interval[1] - found.interval[0]) / (2 * Z95) == pytest.approx(error, rel=0.03)
    assert (found.value_a, found.value_b) == (worst(a), worst(b))
    assert found.p_value < 0.05


def test_more_clusters_than_groups_give_the_same_error():
    generator = np.random.default_rng(0)
    a, b = drawn(generator, 0.7, 900), drawn(generator, 0.7, 900)
    found = own_score_difference("worst_of_three", a, b)
    each = [min(s.value for s in b[i : i + 3]) - min(s.value for s in a[i : i + 3]) for i in range(0, 2700, 3)]
    error = ClusterTotals.of(each, range(900)).standard_error()
    assert (found.interval[1] - found.interval[0]) / (2 * Z95) == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_equal_runs_are_rarely_significant(p):
    generator = np.random.default_rng(1)
    found = [
        own_score_difference("worst_of_three", drawn(generator, p, 30), drawn(generator, p, 30)) for _ in range(60)
    ]
    assert np.mean([row.p_value < 0.05 for row in found if row is not None]) <= 0.15


def test_a_mean_needs_no_score_of_its_own():
    generator = np.random.default_rng(0)
    scores = drawn(generator, 0.5)
    assert own_score_difference("embedded", scores, drawn(generator, 0.6)) is None
    assert own_score_difference("a file of my own", scores, scores) is None
    assert own_score_difference("worst_of_three", [], []) is None


def test_the_note_has_both_scores(tmp_path):
    generator = np.random.default_rng(3)
    for name, chance in (("a", 0.6), ("b", 0.9)):
        scores = drawn(generator, chance)
        outcomes = {score.question_id: score.value for score in scores}
        clusters = {score.question_id: score.cluster for score in scores}
        write_evaluation(tmp_path / name, outcomes, benchmark="worst_of_three", clusters=clusters)
    (row,) = compare_runs([open_run(str(tmp_path / name)) for name in "ab"])
    assert any(line.startswith("the benchmark's own score: ") for line in notes(row))
    stored = json.loads(json.dumps(row.to_dict()))
    assert stored["own_score"]["value_b"] > stored["own_score"]["value_a"]


def test_code_that_fails_on_stored_scores_costs_only_its_own_score(tmp_path, monkeypatch):
    def fail(self, scores):
        raise KeyError("step")

    monkeypatch.setattr(WorstOfThree, "aggregate", fail)
    for name in "ab":
        write_evaluation(tmp_path / name, {"q1": 1.0, "q2": float(name == "a")}, benchmark="worst_of_three")
    (row,) = compare_runs([open_run(str(tmp_path / name)) for name in "ab"])
    assert row.difference.difference == -0.5
    assert "the benchmark's own score cannot be compared: KeyError: 'step'" in notes(row)
