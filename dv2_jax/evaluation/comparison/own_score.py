"""The difference of two runs in a benchmark's own overall score, where that is no mean over questions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, Benchmark, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.statistics import no_bootstrap

GROUPS = 20, 200  # fewest and most groups of clusters that are left out in turn
WORK = 1_000_000  # scores that are aggregated in total, about; bounds the time to some seconds


@dataclass(frozen=True)
class OwnScoreDifference:
    """The overall scores of two runs on the same questions, and their difference b - a with its 95 % interval."""

    value_a: float
    value_b: float
    difference: float
    interval: tuple[float, float]
    p_value: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"the benchmark's own score: {self.value_a:.1%} and {self.value_b:.1%}, {100 * self.difference:+.1f} points"
            f" ({100 * low:+.1f} to {100 * high:+.1f}), p = {self.p_value:.3f}"
        )


def own_score_difference(name: str, a: Sequence[Score], b: Sequence[Score]) -> OwnScoreDifference | None:
    """Compares the overall rows of a registered benchmark's tables.

    The standard error is that of the jackknife: groups of clusters are left out of both runs in turn (J. W. Tukey, 1958).
    It needs no formula for the score, and copies no question.

    Args:
        a, b: all scores of each run to the same questions.

    Returns:
        None if the overall score is the mean of these scores, is undefined, or the benchmark is not registered.
    """
    if name not in BENCHMARKS.names():
        return None
    overall = _overall(BENCHMARKS.get(name)())
    with no_bootstrap():
        values = overall(a), overall(b)
        if None in values or np.allclose(values, [_mean(a), _mean(b)], rtol=0, atol=1e-9):
            return None
        groups = _groups([*a, *b])
        differences = []
        for group in range(max(groups.values()) + 1):
            kept = [[score for score in scores if groups[_cluster(score)] != group] for scores in (a, b)]
            left = [overall(scores) for scores in kept]
            if None in left:
                return None
            differences.append(left[1] - left[0])
    count, difference = len(differences), values[1] - values[0]
    if count < 2:
        return None
    error = float(np.sqrt((count - 1) * np.var(differences)))
    half = float(stdtrit(count - 1, 0.975)) * error
    p_value = 2 * float(stdtr(count - 1, -abs(difference) / error)) if error else float(difference == 0)
    interval = max(-1.0, difference - half), min(1.0, difference + half)
    return OwnScoreDifference(values[0], values[1], difference, interval, p_value)


def _overall(benchmark: Benchmark) -> Callable[[Sequence[Score]], float | None]:
    def value(scores: Sequence[Score]) -> float | None:
        return next((row.value for row in benchmark.aggregate(scores) if row.name == OVERALL_ROW), None)

    return value


def _mean(scores: Sequence[Score]) -> float:
    """Averages samples of each question, then questions, as tables do."""
    samples: dict[str, list[float]] = {}
    for score in scores:
        if score.value is not None:
            samples.setdefault(score.question_id, []).append(score.value)
    return float(np.mean([np.mean(values) for values in samples.values()])) if samples else 0.0


def _cluster(score: Score) -> Hashable:
    return score.cluster or score.question_id


def _groups(scores: Sequence[Score]) -> dict[Hashable, int]:
    """Returns the group of each cluster: clusters in random order with a fixed seed, dealt to as many groups as `WORK` allows."""
    count = min(max(WORK // len(scores), GROUPS[0]), GROUPS[1])
    clusters = list(dict.fromkeys(map(_cluster, scores)))
    order = np.random.default_rng(0).permutation(len(clusters))
    return {clusters[index]: place % count for place, index in enumerate(order)}
