"""The questions of an evaluation: the embedded held-out split, or rows in the released format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.config import ConfigError, TaskConfig
from dv2_jax.data.question import Question
from dv2_jax.data.rows import read_questions
from dv2_jax.data.tasks import generate

EMBEDDED = "default"


def held_out(task: TaskConfig) -> Sequence[Question]:
    """``task.eval_size`` questions of the split that training never sees.

    Of a file, its first rows (0: all of them): name another one than training reads.
    """
    if task.source == EMBEDDED:
        if task.eval_size < 1:
            raise ConfigError(f"task.eval_size = {task.eval_size}: evaluate at least one question")
        return generate("eval", task.eval_size, task.seed, task.skills)
    if not Path(task.source).exists():
        raise ConfigError(f"task.source = {task.source!r}: use 'default' or the path of a parquet, jsonl or json file")
    questions = list(itertools.islice(read_questions(task.source), task.eval_size or None))
    if not questions:
        raise ConfigError(f"task.source = {task.source!r} holds no questions")
    return questions
