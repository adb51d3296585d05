"""The bootstrap over clusters: intervals of statistics without a formula for their standard error.

Clusters are drawn with replacement, each with all of its observations. Seeds are fixed: the same scores have the same
interval. Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), percentile interval.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from dv2_jax.evaluation.statistics.clusters import ClusterTotals

RESAMPLES = 10_000
SEED = 20_261_125
_SKIPPED = contextvars.ContextVar("no bootstrap", default=False)
BLOCK = 1 << 22  # numbers drawn at once: bounds the memory


def bootstrap_means(totals: ClusterTotals, resamples: int = RESAMPLES, seed: int = SEED) -> Float[np.ndarray, "R"]:
    """Returns the means of `resamples` resamples of the clusters.

    Clusters with equal sum and weight are interchangeable, so that the number of draws of each distinct pair is
    multinomial: a few numbers per resample for scores of 0 and 1, however many questions there are.
    """
    pairs, counts = np.unique(np.stack([totals.sums, totals.weights]), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    found = []
    block = max(1, BLOCK // len(counts))
    for start in range(0, resamples, block):
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=min(block, resamples - start))
        sums, weights = (drawn @ pairs.T).T
        found.append(sums / weights)
    return np.concatenate(found)


@contextlib.contextmanager
def no_bootstrap() -> Iterator[None]:
    """Makes `bootstrap_interval` return None in the block, where only values are needed."""
    token = _SKIPPED.set(True)
    try:
        yield
    finally:
        _SKIPPED.reset(token)


def bootstrap_interval(
    clusters: int,
    statistic: Callable[[Sequence[int]], float | None],
    resamples: int = 1000,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Computes the 95 % percentile interval of any statistic of clusters.

    Args:
        statistic: of a sequence of indices of clusters, in which one may occur several times; None where undefined.

    Returns:
        None if the statistic is undefined in more than half of the resamples.
    """
    if _SKIPPED.get():
        return None
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(clusters, size=clusters).tolist() for _ in range(resamples))
    values = [value for indices in drawn if (value := statistic(indices)) is not None]
    return percentile_interval(values) if 2 * len(values) >= resamples else None


def percentile_interval(values: Sequence[float] | Float[np.ndarray, "R"]) -> tuple[float, float]:
    """Returns the 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(np.asarray(values, float), [0.025, 0.975])
    return float(low), float(high)
