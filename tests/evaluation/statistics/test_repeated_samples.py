import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.statistics import pass_at_k, sample_sizes


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(numbers):
    n, correct, k = numbers
    subsets = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(correct, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased():
    """Catches the plug-in estimate: the mean over all numbers of correct samples must be 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(c, n, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize("numbers", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_pass_at_k_refuses_impossible_numbers(numbers):
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(*numbers)


def test_tables_show_powers_of_two():
    assert [sample_sizes(n) for n in (0, 1, 4, 5)] == [[], [1], [1, 2, 4], [1, 2, 4, 5]]
