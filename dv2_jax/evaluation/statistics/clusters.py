"""Standard errors and intervals of means whose observations are correlated within clusters.

Questions about one image, variants of one template and several samples of one question are clusters: their scores vary
together, so that n of them contain less information than n independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from dv2_jax.evaluation.statistics.proportions import Z95, wilson_interval


@dataclass(frozen=True)
class ClusterTotals:
    """The weighted sum of values and the sum of weights of every cluster; the mean is `sums.sum() / weights.sum()`.

    `n` is the number of observations.
    """

    sums: Float[np.ndarray, "clusters"]
    weights: Float[np.ndarray, "clusters"]
    n: int

    @classmethod
    def of(
        cls, values: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
    ) -> ClusterTotals:
        """Adds up values per cluster; `clusters[i]` names the cluster of `values[i]`, and weights are 1 by default.

        Raises:
            ValueError: the lengths differ, or there are no values.
        """
        if len(values) != len(clusters) or not len(values):
            raise ValueError(f"{len(values)} values and {len(clusters)} clusters: give as many of both, at least one")
        numbers: dict[Hashable, int] = {}
        index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
        factors = np.ones(len(values)) if weights is None else np.asarray(weights, float)
        sums = np.bincount(index, factors * np.asarray(values, float))
        return cls(sums, np.bincount(index, factors), len(values))

    @property
    def mean(self) -> float:
        """The weighted mean of all values."""
        return math.fsum(self.sums) / math.fsum(self.weights)

    @property
    def is_trivial(self) -> bool:
        """True if every cluster has one observation: these are then independent."""
        return len(self.sums) == self.n

    @property
    def effective_clusters(self) -> float:
        """The number of equally large clusters that determine a mean as well, (Σ w)² / Σ w² (L. Kish, 1965)."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    def standard_error(self) -> float:
        """Computes the standard error of the mean, robust to any correlation within clusters; infinite for one cluster.

        It is the square root of G/(G-1) Σ_c (Σ_{i in c} w_i (s_i - mean))² / (Σ w)², for G clusters. Multiplied out, the
        sum is that of E. Miller, arXiv 2411.00640, equation 4: n⁻² Σ_i (s_i - mean)² plus n⁻² times the products of
        different observations of one cluster. The factor G/(G-1) is Bessel's correction where clusters are single.
        """
        clusters = len(self.sums)
        if clusters < 2:
            return math.inf
        residuals = self.sums - self.mean * self.weights
        return math.sqrt(clusters / (clusters - 1) * float((residuals**2).sum())) / float(self.weights.sum())

    def effective_n(self) -> float:
        """Computes the number of independent scores of 0 and 1 whose mean has the same standard error, at most `n`.

        Without variance there is no estimate of the correlation: the clusters count as one observation each.
        """
        if self.is_trivial:
            return float(self.n)
        p, error = min(max(self.mean, 0.0), 1.0), self.standard_error()
        return min(max(p * (1 - p) / error**2, 1.0), float(self.n)) if error > 0 else self.effective_clusters

    def interval(self) -> tuple[float, float]:
        """Computes the 95 % interval of a mean of scores in [0, 1]; see `clustered_interval`."""
        p, n = min(max(self.mean, 0.0), 1.0), self.effective_n()
        quantile = Z95 if self.is_trivial else float(stdtrit(max(self.effective_clusters - 1, 1.0), 0.975))
        low, high = wilson_interval(p * n, n, quantile)
        return min(low, p), max(high, p)  # p · n / n may be rounded


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Computes the standard error of a mean whose observations may be correlated within clusters."""
    return ClusterTotals.of(values, clusters).standard_error()


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Computes a 95 % interval of the mean of scores in [0, 1] that are correlated within clusters.

    It is Wilson's interval at the effective number of observations p(1 - p) / SE², with the clustered standard error SE
    and the quantile of Student's t for (effective clusters - 1) degrees of freedom, as E. L. Korn and B. I. Graubard
    (Survey Methodology 24, 1998) do for Clopper and Pearson's. The normal interval mean ± 1.96 SE leaves [0, 1], has
    width 0 at 0 and 1, and covers far less than 95 % with few clusters or extreme p (measured in
    `docs/concepts/statistics.md`). The effective number is at most the real one, so that a negative correlation found by
    chance does not make the interval narrower than that of independent observations. Scores that are all 0 or all 1 show
    no correlation; each cluster then counts as one observation, the most cautious choice.
    """
    return ClusterTotals.of(values, clusters, weights).interval()
