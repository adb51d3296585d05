import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dv2_jax.evaluation.statistics import mean, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (20, 20), (7, 20), (311, 500)])
def test_wilson_interval_equals_scipys(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_observed_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert mean([]) == 0.0


def test_mean_does_not_lose_small_values_next_to_large_ones():
    values = [1e16, 1.0, -1e16] * 10
    assert mean(values) == pytest.approx(1 / 3)
    assert np.mean(values, dtype=np.float32) != pytest.approx(1 / 3)  # what a plain sum would do


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_contains_the_proportion(numbers):
    """Catches rounding that leaves 0 or 1 outside by 1e-16: an error bar of a figure would be negative."""
    successes, n = numbers
    for s in (successes, 0, n):
        low, high = wilson_interval(s, n)
        assert 0 <= low <= s / n <= high <= 1
