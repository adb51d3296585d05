"""Means and intervals of an evaluation."""

from __future__ import annotations

import math


def wilson_interval(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (95 % by default); (0, 1) without observations.

    Source: E. B. Wilson, JASA 22 (1927), 209-212. Unlike the normal interval it stays inside [0, 1] and has a
    width at 0 of n and n of n, where a small evaluation often lands.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    scale = 1.0 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def mean(values: list[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0
