"""Loads the questions of RL and its evaluation: the built-in toy task or files in the released format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dv2_jax.config import ConfigError, TaskConfig
from dv2_jax.data.question import Question
from dv2_jax.data.rows import read_questions
from dv2_jax.toy.tasks import make_questions

BUILTIN = "default"


class ReadRows(Protocol):
    """Reads the questions of the file that the configuration key `key` names: its first `size` rows, 0 for all."""

    def __call__(self, key: str, path: str, size: int = 0) -> list[Question]: ...


def read_rows(key: str, path: str, size: int = 0) -> list[Question]:
    """Reads rows without checking the file first: the first fault raises.

    Raises:
        ConfigError: the file does not exist or is empty.
        RowError: a row has a fault.
    """
    check_exists(key, path)
    questions = list(read_questions(path, limit=size or None))
    if not questions:
        raise ConfigError(f"{key} = {path!r} holds no questions")
    return questions


def check_exists(key: str, path: str) -> None:
    """Raises ConfigError if there is no file or folder of that name."""
    if not Path(path).exists():
        raise ConfigError(f"{key} = {path!r}: use {BUILTIN!r} or the path of a parquet, jsonl or json file")


def train_questions(task: TaskConfig, read: ReadRows = read_rows) -> Sequence[Question]:
    """Returns the questions that RL trains on; disjoint from `eval_questions`."""
    if task.source == BUILTIN:
        return make_questions("train", task.train_size, task.seed, task.skills)
    questions = read("task.source", task.source)
    return questions if task.eval_source else _split(task, questions)[0]


def eval_questions(task: TaskConfig, read: ReadRows = read_rows) -> Sequence[Question]:
    """Returns `task.eval_size` held-out questions.

    They are the first rows of `task.eval_source` or, if that is empty, the last rows of the file `task.source`.
    """
    if task.eval_source:
        return read("task.eval_source", task.eval_source, task.eval_size)
    if task.source != BUILTIN:
        return _split(task, read("task.source", task.source))[1]
    if task.eval_size < 1:
        raise ConfigError(f"task.eval_size = {task.eval_size}: evaluate at least one question")
    return make_questions("eval", task.eval_size, task.seed, task.skills)


def _split(task: TaskConfig, questions: list[Question]) -> tuple[list[Question], list[Question]]:
    size = task.eval_size
    if not 1 <= size < len(questions):
        raise ConfigError(
            f"task.eval_size = {size}, but task.source = {task.source!r} has {len(questions)} rows to train on and to"
            " hold out: choose a smaller number, or name a file of held-out questions with task.eval_source"
        )
    return questions[:-size], questions[-size:]
