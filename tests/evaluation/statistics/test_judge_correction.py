import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from dv2_jax.evaluation.statistics import (
    JudgeQuality,
    cohen_kappa,
    corrected_accuracy,
    krippendorff_alpha,
    wilson_interval,
)


def test_the_corrected_accuracy_is_that_of_rogan_and_gladen():
    judge = JudgeQuality(right_accepted=45, right=50, wrong_rejected=40, wrong=50)
    estimate, (low, high) = corrected_accuracy(150, 300, judge)
    assert estimate == pytest.approx((0.5 + 0.8 - 1) / (0.8 + 0.9 - 1))
    assert low < estimate < high


@given(st.floats(0, 1), st.integers(6, 40), st.integers(6, 40), st.integers(1, 500))
def test_a_perfect_judge_needs_no_correction(p, right, wrong, n):
    """Catches sensitivity and specificity in each other's place, and an interval narrower than that of the answers."""
    estimate, (low, high) = corrected_accuracy(p * n, n, JudgeQuality(right, right, wrong, wrong))
    assert estimate == pytest.approx(p)
    plain = wilson_interval(p * n, n)
    assert 0 <= low <= estimate <= high <= 1
    assert high - low >= 0.8 * (plain[1] - plain[0])


@pytest.mark.parametrize(
    ("theta", "q1", "q0", "n", "labels"),
    [(0.6, 0.9, 0.85, 300, 100), (0.6, 0.98, 0.98, 300, 50), (0.1, 0.95, 0.9, 300, 100), (0.8, 0.8, 0.7, 500, 200)],
)
def test_the_interval_covers_the_accuracy_that_humans_would_find(theta, q1, q0, n, labels):
    generator = np.random.default_rng(4)
    covered = found = 0

    def verdicts(truth):
        return np.where(truth, generator.random(len(truth)) < q1, generator.random(len(truth)) >= q0)

    for _ in range(500):
        answers, labeled = generator.random(n) < theta, generator.random(labels) < theta
        result = corrected_accuracy(verdicts(answers).sum(), n, JudgeQuality.of(verdicts(labeled), labeled))
        if result is not None:
            found += 1
            covered += result[1][0] <= theta <= result[1][1]
    assert found > 480
    assert covered / found >= 0.925


@pytest.mark.parametrize("judge", [JudgeQuality(5, 5, 0, 0), JudgeQuality(0, 0, 5, 5), JudgeQuality(5, 10, 5, 10)])
def test_a_judge_without_information_corrects_nothing(judge):
    assert corrected_accuracy(10, 20, judge) is None


def test_counts_of_verdicts_and_labels():
    judge = JudgeQuality.of([True, True, False, False, True], [True, False, False, True, True])
    assert judge == JudgeQuality(2, 3, 1, 2)
    assert (judge.sensitivity, judge.specificity, judge.agreement) == (pytest.approx(2 / 3), 0.5, 0.6)
    assert judge.kappa == pytest.approx(
        cohen_kappa_score([True, True, False, False, True], [True, False, False, True, True])
    )
    assert judge.intervals()["sensitivity"] == wilson_interval(2, 3)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([True, False])), min_size=2, max_size=40))
def test_kappa_equals_that_of_scikit_learn(pairs):
    first, second = zip(*pairs, strict=True)
    found = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-9)


def test_alpha_of_the_textbooks_example():
    """K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: four observers, nominal data."""
    rows = ["123321412---", "1233224125-3", "-3332342251-", "12332441251-"]
    units = [[row[i] for row in rows if row[i] != "-"] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_without_pairs_or_disagreement_is_undefined():
    assert krippendorff_alpha([[True], [False]]) is None
    assert krippendorff_alpha([[True, True], [True, True]]) is None
    assert krippendorff_alpha([[True, True], [False, False]]) == 1.0


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=30))
def test_alpha_of_two_raters_is_near_kappa(units):
    """Alpha of two raters is Scott's pi with a correction for small samples."""
    alpha = krippendorff_alpha(units)
    labels = [label for unit in units for label in unit]
    if len(set(labels)) == 1:
        assert alpha is None
        return
    share = np.mean(labels)
    observed = np.mean([a != b for a, b in units])
    expected = 2 * share * (1 - share) * len(labels) / (len(labels) - 1)
    assert alpha == pytest.approx(1 - observed / expected)
