"""The bootstrap of benchmarks whose scores are no means, against the jackknife over clusters, which copies no cluster."""

import numpy as np
import pytest

from dv2_jax.evaluation.benchmarks import benchmark as benchmark_module
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.statistics import Z95


def wemath(generator):
    """Problems of two and three steps, each with its own difficulty."""
    for problem in range(120):
        kind, steps, chance = ("2steps", "12", 0.3) if problem % 2 else ("3steps", "123", 0.8)
        for step in [*steps, "multi"]:
            yield (
                f"{kind} {problem}",
                step,
                chance if generator.random() < 0.8 else 1 - chance,
                {"kind": kind, "step": step},
            )


def dynamath(generator):
    for template in range(100):
        chance = generator.choice([0.1, 0.6, 1.0])
        for variant in range(10):
            yield f"template {template}", variant, chance, {"level": "easy"}


def hrbench4k(generator):
    for image in range(100):
        chance = generator.choice([0.1, 0.9])
        for cycle in range(4):
            yield str(image), cycle, chance, {"cycle": str(cycle)}


@pytest.mark.parametrize("make", [wemath, dynamath, hrbench4k])
def test_the_bootstrap_has_the_spread_of_the_jackknife(make, monkeypatch):
    """Catches an interval of answers for a score of problems, templates or rotations, whose answers vary together."""
    generator = np.random.default_rng(0)
    scores = [
        Score(
            float(generator.random() < chance),
            question_id=f"{cluster}-{part}",
            cluster=cluster,
            group="a",
            details=details,
        )
        for cluster, part, chance, details in make(generator)
    ]
    benchmark = BENCHMARKS.get(make.__name__)()
    rows = {row.name: row for row in benchmark.aggregate(scores)}
    clusters = sorted({score.cluster for score in scores})
    monkeypatch.setattr(benchmark_module, "bootstrap_interval", lambda *arguments: (0.0, 1.0))
    without = [
        {row.name: row.value for row in benchmark.aggregate([score for score in scores if score.cluster != cluster])}
        for cluster in clusters
    ]
    for name, row in rows.items():
        values = np.array([values[name] for values in without])
        jackknife = np.sqrt((len(clusters) - 1) * values.var())
        if jackknife > 0:
            assert (row.interval[1] - row.interval[0]) / (2 * Z95) == pytest.approx(jackknife, rel=0.15), name
