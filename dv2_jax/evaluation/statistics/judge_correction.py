"""Agreement of a judge with humans, and the accuracy corrected for the judge's errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from dv2_jax.evaluation.statistics.proportions import Z95, wilson_interval


@dataclass(frozen=True)
class JudgeQuality:
    """Verdicts of a judge on answers that humans have labeled."""

    right_accepted: int  # correct answers that the judge accepted
    right: int  # correct answers
    wrong_rejected: int  # wrong answers that the judge rejected
    wrong: int  # wrong answers

    @classmethod
    def of(cls, verdicts: Sequence[bool], labels: Sequence[bool]) -> JudgeQuality:
        """Counts verdicts of the judge against labels of humans."""
        pairs = Counter(zip(map(bool, verdicts), map(bool, labels), strict=True))
        accepted, rejected = pairs[True, True], pairs[False, False]
        return cls(accepted, accepted + pairs[False, True], rejected, rejected + pairs[True, False])

    @property
    def sensitivity(self) -> float | None:
        """The share of correct answers that the judge accepts; None without any."""
        return self.right_accepted / self.right if self.right else None

    @property
    def specificity(self) -> float | None:
        """The share of wrong answers that the judge rejects; None without any."""
        return self.wrong_rejected / self.wrong if self.wrong else None

    @property
    def agreement(self) -> float | None:
        """The share of answers with the same verdict; None without labels."""
        n = self.right + self.wrong
        return (self.right_accepted + self.wrong_rejected) / n if n else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa of judge and humans."""
        missed, mistaken = self.right - self.right_accepted, self.wrong - self.wrong_rejected
        verdicts = [True] * self.right_accepted + [False] * missed + [True] * mistaken + [False] * self.wrong_rejected
        return cohen_kappa(verdicts, [True] * self.right + [False] * self.wrong)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Returns the 95 % Wilson intervals of agreement, sensitivity and specificity."""
        return {
            "agreement": wilson_interval(self.right_accepted + self.wrong_rejected, self.right + self.wrong),
            "sensitivity": wilson_interval(self.right_accepted, self.right),
            "specificity": wilson_interval(self.wrong_rejected, self.wrong),
        }


def corrected_accuracy(accepted: float, n: float, judge: JudgeQuality) -> tuple[float, tuple[float, float]] | None:
    """Corrects the share of accepted answers for the errors of the judge; with its 95 % interval.

    The accuracy is (p + q0 - 1) / (q0 + q1 - 1) with sensitivity q1 and specificity q0 (W. J. Rogan and B. Gladen,
    American Journal of Epidemiology 107, 1978; for judges arXiv 2511.21140), cut to [0, 1]. The interval is that of
    Z. Lang and J. Reiczigel (Preventive Veterinary Medicine 113, 2014): the delta method with the variances of p, q0 and
    q1, after adding pseudo-observations, so that it also covers where the judge made no error on few labels.

    Args:
        accepted: sum of the judge's verdicts on the answers of the evaluation.
        n: their number, or the effective number if they are clustered.
        judge: counts on labeled answers, a random part of those answers or of similar ones.

    Returns:
        None if correct or wrong answers are missing among the labels, or the judge is no better than chance.
    """
    q1, q0 = judge.sensitivity, judge.specificity
    if not n or q1 is None or q0 is None or q1 + q0 <= 1:
        return None
    p = accepted / n
    estimate = min(max((p + q0 - 1) / (q0 + q1 - 1), 0.0), 1.0)
    p = (accepted + Z95**2 / 2) / (n + Z95**2)
    q1 = (judge.right_accepted + 1) / (judge.right + 2)
    q0 = (judge.wrong_rejected + 1) / (judge.wrong + 2)
    skill = q0 + q1 - 1
    if skill <= 0:
        return estimate, (0.0, 1.0)
    theta = (p + q0 - 1) / skill
    error_of_q1, error_of_q0 = q1 * (1 - q1) / judge.right, q0 * (1 - q0) / judge.wrong
    shift = 2 * Z95**2 * (theta * error_of_q1 - (1 - theta) * error_of_q0)
    variance = p * (1 - p) / (n + Z95**2) + theta**2 * error_of_q1 + (1 - theta) ** 2 * error_of_q0
    half = Z95 * math.sqrt(variance) / skill
    low, high = (min(max(theta + shift + sign * half, 0.0), 1.0) for sign in (-1, 1))
    return estimate, (min(low, estimate), max(high, estimate))


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Computes Cohen's kappa of two raters: agreement beyond that of chance; None where chance alone agrees always."""
    n = len(first)
    if not n:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    left, right = Counter(first), Counter(second)
    expected = sum(left[value] * right[value] for value in left) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Computes Krippendorff's alpha for nominal labels of any number of raters, who may have labeled different units.

    Source: K. Krippendorff, Content Analysis (2004), chapter 11: 1 - observed / expected disagreement, of pairs of
    labels. Units with one label have no pair and are left out.

    Args:
        units: the labels of each unit.

    Returns:
        None without pairs, or if all labels are equal.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = Counter()
    for unit in paired:
        totals.update(unit)
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    if not expected:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count * count for count in unit.values())) / (unit.total() - 1) for unit in paired
    )
    return 1.0 - (n - 1) * observed / expected
