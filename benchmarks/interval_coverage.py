"""Measures how often 95 % intervals contain the truth: `python -m benchmarks.interval_coverage [--repetitions=2000]`.

Simulates evaluations with known accuracy: correlated answers within clusters, differences of two runs, a judge that errs.
Prints the share of intervals that contain the truth, for the interval of the tables and for simpler ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from dv2_jax.evaluation.statistics import (
    Z95,
    ClusterTotals,
    JudgeQuality,
    bootstrap_means,
    corrected_accuracy,
    mcnemar,
    wilson_interval,
)
from dv2_jax.evaluation.statistics.cluster_bootstrap import percentile_interval
from dv2_jax.evaluation.statistics.paired import difference_interval, sign_flip_p_value

CLUSTERED = [
    # accuracy, correlation within clusters, sizes of clusters
    (0.2, 0.3, [4] * 10), (0.5, 0.3, [4] * 25), (0.5, 0.8, [4] * 50), (0.9, 0.3, [4] * 25), (0.05, 0.3, [4] * 50),
    (0.3, 0.3, [10] * 50), (0.2, 0.3, [1, 1, 1, 2, 8] * 10), (0.9, 0.8, [1, 1, 1, 2, 8] * 10),
]  # fmt: skip
PAIRED = [
    # questions, share that only A answers, share that only B answers, questions per cluster
    (50, 0.05, 0.05, 1), (171, 0.1, 0.1, 1), (191, 0.055, 0.145, 1), (1000, 0.08, 0.12, 1), (200, 0.05, 0.15, 4),
    (80, 0.02, 0.06, 4),
]  # fmt: skip
JUDGED = [
    # accuracy, sensitivity, specificity, answers, labels
    (0.6, 0.9, 0.85, 300, 100), (0.6, 0.98, 0.98, 300, 50), (0.3, 0.95, 1.0, 1000, 60), (0.8, 0.8, 0.7, 500, 200),
    (0.1, 0.95, 0.9, 300, 100),
]  # fmt: skip


def clustered(generator: np.random.Generator, p: float, correlation: float, sizes: list[int]) -> dict[str, bool]:
    """Draws scores whose clusters have a beta distribution; returns which intervals contain the accuracy."""
    scale = (1 - correlation) / correlation
    chances = generator.beta(p * scale, (1 - p) * scale, len(sizes))
    sums = generator.binomial(sizes, chances).astype(float)
    totals = ClusterTotals(sums, np.array(sizes, float), sum(sizes))
    error = totals.standard_error()
    return {
        "tables": _contains(totals.interval(), p),
        "Wilson of answers": _contains(wilson_interval(sums.sum(), totals.n), p),
        "mean ± 1.96 SE": abs(totals.mean - p) <= Z95 * error,
    }


def paired(generator: np.random.Generator, n: int, only_a: float, only_b: float, size: int) -> dict[str, bool]:
    """Draws differences; returns which intervals contain the true one, and whether the test finds it."""
    chances = [only_a, 1 - only_a - only_b, only_b]
    shared = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(n // size, 1))
    own = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(n // size, size))
    values = np.where(generator.random(own.shape) < 0.5 * (size > 1), shared, own)
    totals = ClusterTotals(values.sum(1), np.full(n // size, float(size)), n)
    p_value = (
        mcnemar(int((values == -1).sum()), int((values == 1).sum()))[0]
        if size == 1
        else sign_flip_p_value(totals.sums, 2000)
    )
    return {
        "tables": _contains(difference_interval(totals, 2000), only_b - only_a),
        "bootstrap alone": _contains(percentile_interval(bootstrap_means(totals, 2000)), only_b - only_a),
        "p < 0.05": p_value < 0.05,
    }


def judged(generator: np.random.Generator, p: float, q1: float, q0: float, n: int, labels: int) -> dict[str, bool]:
    """Draws verdicts and labels; returns which intervals contain the accuracy that humans would find."""

    def verdicts(truth: np.ndarray) -> np.ndarray:
        return np.where(truth, generator.random(len(truth)) < q1, generator.random(len(truth)) >= q0)

    answers, labeled = generator.random(n) < p, generator.random(labels) < p
    accepted = verdicts(answers).sum()
    found = corrected_accuracy(accepted, n, JudgeQuality.of(verdicts(labeled), labeled))
    return {
        "tables": found is not None and _contains(found[1], p),
        "Wilson of verdicts": _contains(wilson_interval(accepted, n), p),
    }


def _contains(interval: tuple[float, float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def coverage(title: str, cases: list[tuple], draw: Callable[..., dict[str, bool]], repetitions: int) -> Table:
    """Simulates every case and returns a table of shares."""
    generator, rows = np.random.default_rng(0), []
    for case in cases:
        drawn = [draw(generator, *case) for _ in range(repetitions)]
        rows.append((_describe(case), {name: sum(row[name] for row in drawn) / repetitions for name in drawn[0]}))
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("case", *rows[0][1]):
        table.add_column(name, justify="left" if name == "case" else "right")
    for description, shares in rows:
        table.add_row(description, *(f"{share:.1%}" for share in shares.values()))
    return table


def _describe(case: tuple) -> str:
    return ", ".join(
        f"{len(part)} clusters of {'/'.join(map(str, dict.fromkeys(part)))}" if isinstance(part, list) else f"{part:g}"
        for part in case
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interval_coverage", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions, console = parser.parse_args().repetitions, Console()
    parts = [
        ("correlated answers: accuracy, correlation, clusters", CLUSTERED, clustered),
        ("differences: questions, only A, only B, questions per cluster", PAIRED, paired),
        ("judge: accuracy, sensitivity, specificity, answers, labels", JUDGED, judged),
    ]
    for title, cases, draw in parts:
        console.print(coverage(title, cases, draw, repetitions))
    console.print(f"standard error of a share: {math.sqrt(0.95 * 0.05 / repetitions):.1%}")


if __name__ == "__main__":
    main()
