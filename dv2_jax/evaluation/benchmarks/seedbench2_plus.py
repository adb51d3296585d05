"""SEED-Bench-2-Plus: questions about charts, maps and websites (arXiv 2404.16790)."""

from __future__ import annotations

from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.choice_benchmark import ChoiceBenchmark


@register_benchmark
class SeedBench2Plus(ChoiceBenchmark):
    """SEED-Bench-2-Plus: the mean over all answers; rows per category."""

    name = "seedbench2_plus"
    title = "SEED-Bench-2-Plus"
    files = ("SEEDBench2_Plus.tsv",)
    published_rows = 2_277
