"""The benchmarks against which a set is decontaminated: all that are found on disk, or those that the run names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dv2_jax.config import Config, ConfigError
from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark_registry import registered_benchmarks, run_benchmarks
from dv2_jax.rollout.question_sources import read_rows

ALL_FOUND = "found"


def benchmark_sets(config: Config) -> Iterator[tuple[str, Sequence[Question]]]:
    """Yields (name, questions) of the benchmarks of `curate.benchmarks`; `found` stands for every one that has its files.

    Raises:
        ConfigError: a named benchmark is unknown or cannot be loaded.
    """
    names = config.curate.benchmarks
    explicit = tuple(name for name in names if name != ALL_FOUND)
    if explicit:
        # A comparison of questions needs neither tools nor a judge.
        plain = replace(config, eval=replace(config.eval, benchmarks=explicit))
        for benchmark in run_benchmarks(plain):
            yield benchmark.name, benchmark.load(config, read_rows)
    if ALL_FOUND in names:
        for benchmark in registered_benchmarks():
            if benchmark.name not in explicit and benchmark.files:
                try:
                    questions = benchmark.load(config, read_rows)
                except (ConfigError, OSError):
                    continue
                yield benchmark.name, questions
