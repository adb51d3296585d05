import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from dv2_jax.evaluation.statistics import (
    ClusterTotals,
    PairedCounts,
    bootstrap_means,
    holm,
    mcnemar,
    paired_difference,
    smallest_unpaired_difference,
    smallest_visible_difference,
)
from dv2_jax.evaluation.statistics.cluster_bootstrap import percentile_interval
from dv2_jax.evaluation.statistics.paired import difference_interval, sign_flip_p_value


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_value_is_that_of_the_binomial_test(only_a, only_b):
    p_value, test = mcnemar(only_a, only_b)
    n = only_a + only_b
    exact = binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert test == ("McNemar, exact" if n < 25 else "McNemar, mid-p")
    assert p_value == pytest.approx(exact if n < 25 else exact - binom.pmf(only_a, n, 0.5), abs=1e-9)
    assert mcnemar(only_b, only_a)[0] == pytest.approx(p_value)


@pytest.mark.parametrize("discordant", [30, 60, 150])
def test_mcnemar_raises_a_false_alarm_in_at_most_one_of_twenty_cases(discordant):
    """Catches mid-p with a factor missing: errors of the first kind, summed over all outcomes."""
    outcomes = np.arange(discordant + 1)
    p_values = np.array([mcnemar(int(b), discordant - int(b))[0] for b in outcomes])
    error = binom.pmf(outcomes, discordant, 0.5)[p_values < 0.05].sum()
    assert 0.03 < error <= 0.053


def test_sign_flips_of_single_questions_are_mcnemars_test():
    sums = np.array([1.0] * 14 + [-1.0] * 4 + [0.0] * 30)
    assert sign_flip_p_value(sums, 40_000) == pytest.approx(mcnemar(4, 14)[0], abs=0.005)


def test_clusters_that_differ_together_are_weak_evidence():
    """Catches McNemar's test on questions about one image: 8 pairs of one image are one observation."""
    a, b = [0.0] * 24, [1.0] * 24
    independent = paired_difference(a, b, range(24))
    clustered = paired_difference(a, b, [i // 8 for i in range(24)])
    assert (independent.test, clustered.test) == ("McNemar, exact", "sign flips per cluster")
    assert independent.p_value < 1e-6
    assert clustered.p_value == pytest.approx(0.25, abs=0.02)
    assert clustered.interval[0] < independent.interval[0]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9)),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_exchanging_the_runs_exchanges_the_signs(rows):
    a, b, clusters = zip(*rows, strict=True)
    forward, backward = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.interval == pytest.approx((-backward.interval[1], -backward.interval[0]), abs=0.06)
    assert forward.p_value == pytest.approx(backward.p_value, abs=0.03)
    assert -1 <= forward.interval[0] <= forward.difference <= forward.interval[1] <= 1
    assert 0 < forward.p_value <= 1
    assert forward.interval[0] < forward.interval[1]


def test_equal_runs_differ_by_nothing_and_have_an_interval():
    """Catches an interval without width where no question differs."""
    same = paired_difference([1.0, 0.0] * 20, [1.0, 0.0] * 20, range(40))
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.interval[0] == pytest.approx(-same.interval[1])
    assert 0.02 < same.interval[1] < 0.12


@pytest.mark.parametrize(
    ("n", "only_a", "only_b", "size"),
    [(50, 0.05, 0.05, 1), (171, 0.1, 0.1, 1), (191, 0.055, 0.145, 1), (200, 0.05, 0.15, 4), (80, 0.02, 0.06, 4)],
)
def test_the_interval_covers_the_difference(n, only_a, only_b, size):
    """Catches the bare bootstrap on few clusters, which covers 86 % of the last case."""
    generator, chances = np.random.default_rng(5), [only_a, 1 - only_a - only_b, only_b]
    covered = bare = 0
    for _ in range(300):
        shared = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(n // size, 1))
        own = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(n // size, size))
        values = np.where(generator.random(own.shape) < 0.5 * (size > 1), shared, own).ravel()
        totals = ClusterTotals.of(values, np.arange(n) // size)
        low, high = difference_interval(totals, 500)
        covered += low <= only_b - only_a <= high
        low, high = percentile_interval(bootstrap_means(totals, 500))
        bare += low <= only_b - only_a <= high
    assert covered / 300 >= 0.92
    if n == 80:
        assert bare / 300 < 0.92


def test_counts_add_up():
    counts = PairedCounts(5, 2, 3, 7)
    assert (counts.n, counts.discordant) == (17, 5)


PUBLISHED_TABLE = {171: 9.5, 191: 9.0, 300: 7.2, 405: 6.2, 800: 4.4, 1000: 4.0, 1800: 3.0, 2000: 2.8}


@pytest.mark.parametrize(("n", "points"), PUBLISHED_TABLE.items())
def test_the_smallest_visible_difference_of_usual_benchmarks(n, points):
    assert round(100 * smallest_visible_difference(n), 1) == pytest.approx(points, abs=0.051)


@pytest.mark.parametrize(("n", "discordance"), [(171, 0.2), (1000, 0.1), (300, 0.4)])
def test_a_difference_of_that_size_is_found_in_80_percent(n, discordance):
    """Catches a wrong quantile or a variance under the wrong hypothesis."""
    difference = smallest_visible_difference(n, discordance)
    generator, more = np.random.default_rng(0), (discordance + difference) / 2
    drawn = generator.multinomial(n, [discordance - more, more, 1 - discordance], size=2000)
    found = np.mean([mcnemar(int(a), int(b))[0] < 0.05 for a, b, _ in drawn])
    assert found == pytest.approx(0.8, abs=0.04)


def test_few_questions_show_only_large_differences():
    assert smallest_visible_difference(5) is None
    assert smallest_visible_difference(6) == 1.0
    assert smallest_visible_difference(20, 0.02) >= 6 / 20
    assert smallest_visible_difference(300, design_effect=3) == smallest_visible_difference(100)
    assert smallest_visible_difference(300, design_effect=0.2) == smallest_visible_difference(300)


def test_a_published_number_needs_a_larger_difference_than_a_paired_run():
    variance = 0.8 * 0.2 / 191
    assert smallest_unpaired_difference(2 * variance) == pytest.approx(0.1147, abs=1e-3)
    assert smallest_unpaired_difference(2 * variance) > smallest_visible_difference(191)


def test_holm_adjusts_as_defined():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]
