"""A user's own file of questions in the released format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.data.row_files import QUESTION_ENDINGS
from dv2_jax.data.rows import iter_source
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark
from dv2_jax.rollout.question_sources import ReadRows


class RowsFile(Benchmark):
    """The first `size` rows (0: all) of a parquet, jsonl or json file; `key` is the configuration field that names it."""

    def __init__(self, name: str, path: str, key: str = "eval.benchmarks", size: int = 0):
        self.name, self.source = name, path
        self.key, self.size = key, size

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        return read(self.key, self.source, self.size)

    def row_count(self, config: Config) -> int:
        rows = iter_source(self.source, QUESTION_ENDINGS)
        return sum(1 for _ in islice(rows, self.size or None))
