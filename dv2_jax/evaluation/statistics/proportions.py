"""Means and confidence intervals of independent observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # quantile of the standard normal distribution for a two-sided 95 % interval


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Computes the Wilson score interval of a proportion (95 % by default); (0, 1) without observations.

    Source: E. B. Wilson, JASA 22 (1927), 209-212. Unlike the normal approximation it stays inside [0, 1] and
    has a positive width at 0 of n and n of n, which are common in small evaluations. For partial credit, `successes` is
    the sum of scores in [0, 1]: the interval is then conservative, since their variance is at most p(1 - p). `n` may be
    an effective number of observations, which is no integer.
    """
    if n == 0:
        return 0.0, 1.0
    p = min(max(successes / n, 0.0), 1.0)  # rounding may leave [0, 1]
    scale = 1.0 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # Rounding may leave the proportion itself outside by 1e-16, at 0 of n and n of n.
    return min(p, max(0.0, center - half)), max(p, min(1.0, center + half))


def mean(values: Sequence[float]) -> float:
    """Computes the arithmetic mean with exact summation; 0 for an empty list."""
    return math.fsum(values) / len(values) if values else 0.0
