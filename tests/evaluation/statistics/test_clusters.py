import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.statistics import (
    ClusterTotals,
    bootstrap_interval,
    bootstrap_means,
    clustered_interval,
    clustered_standard_error,
    wilson_interval,
)
from dv2_jax.evaluation.statistics.cluster_bootstrap import percentile_interval

OBSERVATIONS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 6)), min_size=2, max_size=40)


def millers_error(values, clusters):
    """Returns the standard error as the paper writes it: the variance of independent ones plus products in clusters."""
    n, mean = len(values), np.mean(values)
    squares = sum((value - mean) ** 2 for value in values) / n**2
    products = sum(
        (values[i] - mean) * (values[j] - mean)
        for i in range(n)
        for j in range(n)
        if i != j and clusters[i] == clusters[j]
    )
    return math.sqrt(max(0.0, squares + products / n**2))


@given(OBSERVATIONS)
def test_the_standard_error_is_that_of_the_paper(rows):
    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    count = len(set(clusters))
    if count == 1:
        assert clustered_standard_error(values, clusters) == math.inf
        return
    bessel = math.sqrt(count / (count - 1))
    assert clustered_standard_error(values, clusters) == pytest.approx(
        bessel * millers_error(values, clusters), abs=1e-7
    )


def test_the_standard_error_of_single_clusters_is_that_of_independent_scores():
    values = np.random.default_rng(0).random(30)
    assert clustered_standard_error(values, range(30)) == pytest.approx(values.std(ddof=1) / math.sqrt(30))


def test_copies_of_every_score_leave_the_standard_error():
    """Catches an error that shrinks with the number of answers instead of the number of independent ones."""
    values = np.random.default_rng(0).integers(0, 2, 40)
    single = clustered_standard_error(values, range(40))
    assert clustered_standard_error(np.repeat(values, 5), np.repeat(range(40), 5)) == pytest.approx(single)


@given(OBSERVATIONS)
def test_the_interval_is_inside_0_and_1_and_contains_the_mean(rows):
    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    low, high = clustered_interval(values, clusters)
    assert 0 <= low <= ClusterTotals.of(values, clusters).mean <= high <= 1
    independent = wilson_interval(sum(values), len(values))
    assert high - low >= independent[1] - independent[0] - 1e-9
    assert low < high


def test_the_interval_of_single_clusters_is_wilsons():
    assert clustered_interval([1, 0, 1, 1], "abcd") == wilson_interval(3, 4)


def test_scores_that_are_all_equal_count_per_cluster():
    """Catches an interval of 100 answers for 100 equal answers about one image."""
    low, _ = clustered_interval([1.0] * 100, [i // 4 for i in range(100)])
    assert low < wilson_interval(25, 25)[0]
    assert clustered_interval([1.0] * 100, ["one"] * 100)[0] < 0.1


def correlated(generator, p, correlation, sizes):
    """Returns scores of 0 and 1 and their clusters; each cluster has its own probability, with beta distribution."""
    scale = (1 - correlation) / correlation
    chances = generator.beta(p * scale, (1 - p) * scale, len(sizes))
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    return (generator.random(len(clusters)) < chances[clusters]).astype(float), clusters


@pytest.mark.parametrize(
    ("p", "correlation", "sizes"),
    [
        (0.5, 0.3, [4] * 50),
        (0.2, 0.8, [4] * 25),
        (0.9, 0.3, [4] * 25),
        (0.05, 0.3, [4] * 50),
        (0.5, 0.3, [1, 2, 8] * 20),
    ],
)
def test_the_interval_covers_95_percent_of_correlated_scores(p, correlation, sizes):
    """Catches clusters that are ignored: Wilson's interval of the answers covers 70 to 90 % of these."""
    generator = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(600):
        values, clusters = correlated(generator, p, correlation, sizes)
        low, high = clustered_interval(values, clusters)
        covered += low <= p <= high
        low, high = wilson_interval(values.sum(), len(values))
        naive += low <= p <= high
    assert covered / 600 >= 0.925
    assert naive / 600 < 0.91


def test_the_bootstrap_has_the_spread_of_the_standard_error():
    generator = np.random.default_rng(0)
    values, clusters = correlated(generator, 0.4, 0.5, generator.integers(1, 6, 300))
    totals = ClusterTotals.of(values, clusters)
    means = bootstrap_means(totals)
    assert len(means) == 10_000
    assert means.std() == pytest.approx(totals.standard_error(), rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)


def test_the_bootstrap_of_a_mean_is_that_of_any_statistic():
    """Catches wrong multiplicities where clusters with the same sum are drawn together."""
    generator = np.random.default_rng(0)
    values, clusters = correlated(generator, 0.3, 0.4, [3] * 60)
    members = values.reshape(60, 3)
    general = bootstrap_interval(60, lambda drawn: float(members[drawn].mean()), 4000)
    assert general == pytest.approx(percentile_interval(bootstrap_means(ClusterTotals.of(values, clusters))), abs=0.015)


def test_the_bootstrap_is_the_same_each_time():
    totals = ClusterTotals.of([0.0, 0.3, 1.0, 0.7], "aabc")
    assert (bootstrap_means(totals, 50) == bootstrap_means(totals, 50)).all()


def test_a_statistic_that_is_mostly_undefined_has_no_interval():
    assert bootstrap_interval(10, lambda drawn: None if drawn.count(0) else 1.0, 200) is None
    assert bootstrap_interval(10, lambda drawn: None if drawn.count(0) > 2 else 1.0, 200) == (1.0, 1.0)


def test_values_without_clusters_are_refused():
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        ClusterTotals.of([1, 0], ["a"])
