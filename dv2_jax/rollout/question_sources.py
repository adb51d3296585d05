"""The questions of training and of evaluations: the embedded splits, or rows in the released format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.config import ConfigError, TaskConfig
from dv2_jax.data.question import Question
from dv2_jax.data.rows import read_questions
from dv2_jax.toy.tasks import generate

EMBEDDED = "default"


def train_questions(task: TaskConfig) -> Sequence[Question]:
    """The questions that RL draws from: never one of ``held_out``."""
    if task.source == EMBEDDED:
        return generate("train", task.train_size, task.seed, task.skills)
    questions = _rows("task.source", task.source)
    return questions if task.eval_source else _split(task, questions)[0]


def held_out(task: TaskConfig) -> Sequence[Question]:
    """``task.eval_size`` questions that training never sees.

    Of `task.eval_source` its first rows; without one, of a file `task.source`, its last.
    """
    if task.eval_source:
        return _rows("task.eval_source", task.eval_source, task.eval_size)
    if task.source != EMBEDDED:
        return _split(task, _rows("task.source", task.source))[1]
    if task.eval_size < 1:
        raise ConfigError(f"task.eval_size = {task.eval_size}: evaluate at least one question")
    return generate("eval", task.eval_size, task.seed, task.skills)


def benchmark(task: TaskConfig) -> Sequence[Question]:
    """As ``held_out``, where nothing is trained: of a file, its first ``task.eval_size`` rows (0: all of them)."""
    if task.source != EMBEDDED and not task.eval_source:
        return _rows("task.source", task.source, task.eval_size)
    return held_out(task)


def _rows(key: str, path: str, size: int = 0) -> list[Question]:
    if not Path(path).exists():
        raise ConfigError(f"{key} = {path!r}: use {EMBEDDED!r} or the path of a parquet, jsonl or json file")
    questions = list(itertools.islice(read_questions(path), size or None))
    if not questions:
        raise ConfigError(f"{key} = {path!r} holds no questions")
    return questions


def _split(task: TaskConfig, questions: list[Question]) -> tuple[list[Question], list[Question]]:
    size = task.eval_size
    if not 1 <= size < len(questions):
        raise ConfigError(
            f"task.eval_size = {size}, but task.source = {task.source!r} has {len(questions)} rows to train on and to"
            " hold out: choose a smaller number, or name a file of held-out questions with task.eval_source"
        )
    return questions[:-size], questions[-size:]
