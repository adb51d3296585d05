"""Paired comparison of two runs on the same questions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr, stdtrit

from dv2_jax.evaluation.statistics.cluster_bootstrap import RESAMPLES, SEED, bootstrap_means, percentile_interval
from dv2_jax.evaluation.statistics.clusters import ClusterTotals
from dv2_jax.evaluation.statistics.power import smallest_visible_difference

FEW_DISCORDANT = 25  # below: McNemar's test is exact, and the interval has pseudo-observations


@dataclass(frozen=True)
class PairedCounts:
    """Numbers of questions that both runs answer correctly, only one of them, or neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """The number of questions."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def discordant(self) -> int:
        """The number of questions that exactly one run answers."""
        return self.only_a + self.only_b


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two runs, mean of b minus mean of a, in fractions of 1.

    Attributes:
        interval: 95 %.
        p_value: two-sided, of the hypothesis that the runs are equally good.
        test: name of the test.
        discordance: mean square of the differences; for scores of 0 and 1 the share of questions with other outcomes.
        design_effect: variance of the difference relative to that of independent questions, at least 1.
        smallest_visible: smallest difference that would be visible with 80 % power at this n and discordance; None: none.
    """

    n: int
    clusters: int
    mean_a: float
    mean_b: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str
    discordance: float
    design_effect: float
    smallest_visible: float | None


def mcnemar(only_a: int, only_b: int) -> tuple[float, str]:
    """Computes the two-sided p-value of McNemar's test, and its name.

    Exact binomial below 25 discordant pairs, mid-p from there on: the exact test is conservative, and so is the
    chi-square test with continuity correction, whose errors of the first kind stay far below 5 %; mid-p rarely exceeds
    it (M. W. Fagerland, S. Lydersen, P. Laake, BMC Medical Research Methodology 13:91, 2013).
    """
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    exact = min(1.0, 2 * float(bdtr(fewer, discordant, 0.5))) if discordant else 1.0
    if discordant < FEW_DISCORDANT:
        return exact, "McNemar, exact"
    if only_a == only_b:  # both tails contain the observed outcome
        return 1.0 - _binomial(fewer, discordant), "McNemar, mid-p"
    return exact - _binomial(fewer, discordant), "McNemar, mid-p"


def _binomial(successes: int, n: int) -> float:
    """Returns the probability of a number of successes at 0.5."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(successes + 1) - math.lgamma(n - successes + 1) - n * math.log(2))


def sign_flip_p_value(sums: Float[np.ndarray, "clusters"], resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """Computes the two-sided p-value of a randomization test: the sign of every cluster's difference is arbitrary.

    With one question per cluster and scores of 0 and 1 it is the exact test of McNemar, up to the error of sampling.
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    generator = np.random.default_rng(seed)
    flipped = np.zeros(resamples)
    for size, count in zip(sizes, counts, strict=True):
        flipped += size * (2 * generator.binomial(count, 0.5, resamples) - count)
    extreme = np.abs(flipped) >= abs(float(sums.sum())) - 1e-9
    return float((1 + extreme.sum()) / (1 + resamples))


def difference_interval(differences: ClusterTotals, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Computes the 95 % interval of a mean difference: percentiles of the bootstrap over clusters.

    With fewer than 25 clusters that differ, resamples are too coarse, and without any they have no width. Then two
    clusters of average size are added, one in favor of each run, and the interval is that of Student's t: the method of
    D. G. Bonett and R. M. Price (J. Educational and Behavioral Statistics 37, 2012), extended to clusters.
    """
    if np.count_nonzero(differences.sums) >= FEW_DISCORDANT:
        return percentile_interval(bootstrap_means(differences, resamples))
    size = float(differences.weights.mean())
    sums, weights = np.append(differences.sums, [size, -size]), np.append(differences.weights, [size, size])
    adjusted = ClusterTotals(sums, weights, differences.n + 2)
    half = float(stdtrit(len(sums) - 1, 0.975)) * adjusted.standard_error()
    low, high = max(-1.0, adjusted.mean - half), min(1.0, adjusted.mean + half)
    return min(low, differences.mean), max(high, differences.mean)


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]) -> PairedDifference:
    """Compares two runs on the same questions.

    Scores of 0 and 1 on independent questions have McNemar's test. Clusters, partial credit and means of several samples
    have the randomization test over clusters, of which McNemar's is a special case.

    Args:
        a, b: the scores of question i at index i, in [0, 1].
        clusters: names the cluster of each question; questions that share an image or template share it.

    Raises:
        ValueError: the lengths differ, or there is no question.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores: both runs need one per question")
    difference = np.asarray(b, float) - np.asarray(a, float)
    totals = ClusterTotals.of(difference.tolist(), clusters)
    if totals.is_trivial and np.isin(difference, (-1.0, 0.0, 1.0)).all():
        p_value, test = mcnemar(int((difference == -1).sum()), int((difference == 1).sum()))
    else:
        p_value, test = sign_flip_p_value(totals.sums), "sign flips per cluster"
    discordance, design_effect = float((difference**2).mean()), _design_effect(difference, totals)
    return PairedDifference(
        n=len(difference),
        clusters=len(totals.sums),
        mean_a=float(np.mean(a)),
        mean_b=float(np.mean(b)),
        difference=totals.mean,
        interval=difference_interval(totals),
        p_value=p_value,
        test=test,
        discordance=discordance,
        design_effect=design_effect,
        smallest_visible=smallest_visible_difference(len(difference), discordance, design_effect),
    )


def _design_effect(difference: Float[np.ndarray, "n"], totals: ClusterTotals) -> float:
    """Returns the ratio of the clustered variance of a mean to that of independent observations, at least 1."""
    if totals.is_trivial:
        return 1.0
    independent = float(difference.var(ddof=1)) / len(difference)
    if independent == 0 or len(totals.sums) < 2:  # no estimate: every cluster counts as one observation
        return len(difference) / totals.effective_clusters
    return max(1.0, totals.standard_error() ** 2 / independent)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several tests by Holm's method, which bounds the probability of any false alarm."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
