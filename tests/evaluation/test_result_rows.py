import numpy as np
import pytest

from dv2_jax.evaluation.benchmarks.benchmark import ResultRow, Score
from dv2_jax.evaluation.statistics import ClusterTotals, wilson_interval


def test_answers_about_one_image_have_a_wider_interval():
    """Catches clusters that are ignored."""
    scores = [Score(float(i % 20 < 8), question_id=str(i), cluster=f"image{i // 4}") for i in range(100)]
    row = ResultRow.from_scores("a", scores)
    low, high = wilson_interval(40, 100)
    assert (row.value, row.n, row.clusters) == (pytest.approx(0.4), 100, 25)
    assert row.interval[0] < low and row.interval[1] > high


def test_questions_count_alike_however_many_of_their_samples_failed():
    """Catches a mean over answers: a question with one scored sample would count less than one with four."""
    scores = [Score(1.0, question_id="a", sample=i) for i in range(4)]
    scores += [Score(0.0, question_id="b")] + [Score(None, "lost", question_id="b", sample=i) for i in range(1, 4)]
    row = ResultRow.from_scores("x", scores)
    assert (row.value, row.n, row.failed, row.clusters) == (0.5, 5, 3, 2)


def test_samples_of_one_question_are_no_independent_answers():
    scores = [Score(float(i % 2), question_id=str(i), sample=k) for i in range(50) for k in range(8)]
    row = ResultRow.from_scores("x", scores)
    single = wilson_interval(25, 50)
    assert row.clusters == 50
    assert row.interval[1] - row.interval[0] == pytest.approx(single[1] - single[0], rel=0.06)


def test_independent_answers_have_wilsons_interval():
    scores = [Score(float(i < 3), question_id=str(i)) for i in range(10)]
    row = ResultRow.from_scores("x", scores)
    assert (row.interval, row.clusters) == (wilson_interval(3, 10), 10)
    assert ResultRow.from_scores("x", [Score(1.0)] * 5).clusters == 5


def worst_case(scores):
    """Returns the mean over clusters of their smallest score; None if any answer failed."""
    clusters = {}
    for score in scores:
        clusters.setdefault(score.cluster, []).append(score.value)
    if any(value is None for values in clusters.values() for value in values):
        return None
    return sum(min(values) for values in clusters.values()) / len(clusters)


def variants(generator, templates=60, samples=1):
    return [
        Score(float(generator.random() < 0.8), question_id=f"{t}-{v}", cluster=f"t{t}", sample=k)
        for t in range(templates)
        for v in range(5)
        for k in range(samples)
    ]


def test_the_interval_of_a_worst_case_is_that_of_its_clusters():
    """Catches copies of a cluster that are merged in a resample: the interval would be too narrow."""
    scores = variants(np.random.default_rng(0))
    row = ResultRow.from_statistic("worst", scores, worst_case)
    assert row.value == worst_case(scores)
    assert (row.n, row.clusters, row.failed) == (300, 60, 0)
    low, high = wilson_interval(60 * row.value, 60)
    assert row.interval == pytest.approx((low, high), abs=0.03)
    assert row == ResultRow.from_statistic("worst", scores, worst_case)


def test_a_statistic_of_several_samples_is_the_mean_over_samples():
    """Catches a worst case over all samples of all variants."""
    scores = variants(np.random.default_rng(0), samples=3)
    row = ResultRow.from_statistic("worst", scores, worst_case, resamples=50)
    each = [worst_case([score for score in scores if score.sample == k]) for k in range(3)]
    assert row.value == pytest.approx(np.mean(each))


def test_the_statistic_of_a_mean_agrees_with_the_formula():
    generator = np.random.default_rng(0)
    scores = [
        Score(float(generator.random() < (0.9 if t % 3 else 0.1)), question_id=f"{t}-{v}", cluster=f"t{t}")
        for t in range(80)
        for v in range(4)
    ]
    row = ResultRow.from_statistic("mean", scores, lambda s: sum(score.value for score in s) / len(s))
    error = ClusterTotals.of([score.value for score in scores], [score.cluster for score in scores]).standard_error()
    assert (row.interval[1] - row.interval[0]) / 3.92 == pytest.approx(error, rel=0.1)


def test_a_statistic_without_variance_keeps_an_interval():
    scores = [Score(1.0, question_id=str(i), cluster=f"t{i // 5}") for i in range(50)]
    row = ResultRow.from_statistic("worst", scores, worst_case)
    assert (row.value, row.interval) == (1.0, wilson_interval(10, 10))


def test_an_undefined_statistic_has_no_value():
    failed = [Score(None, "lost", cluster="a", question_id="1"), Score(1.0, cluster="a", question_id="2")]
    row = ResultRow.from_statistic("worst", failed, worst_case)
    assert (row.value, row.interval, row.n, row.failed) == (None, None, 1, 1)
    assert ResultRow.from_statistic("worst", [], worst_case).value is None


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_the_bootstrap_covers_the_worst_case(p):
    """Catches an interval that misses the truth more often than one time in ten at 40 templates."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(80):
        scores = [
            Score(float(generator.random() < (1.0 if solved else 0.5)), question_id=f"{t}-{v}", cluster=f"t{t}")
            for t, solved in enumerate(generator.random(40) < p)
            for v in range(2)
        ]
        low, high = ResultRow.from_statistic("worst", scores, worst_case, resamples=100).interval
        covered += low <= p + (1 - p) / 4 <= high
    assert covered / 80 >= 0.88
