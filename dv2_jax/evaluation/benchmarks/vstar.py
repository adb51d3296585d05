"""V* Bench: attributes and relative positions of small objects (arXiv 2312.14135)."""

from __future__ import annotations

from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.choice_benchmark import ChoiceBenchmark


@register_benchmark
class VStar(ChoiceBenchmark):
    """V*: the mean over all answers; rows per category."""

    name = "vstar"
    title = "V*"
    files = ("VStarBench.tsv",)
    published_rows = 191
