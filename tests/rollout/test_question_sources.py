"""Tests the split of questions into training and evaluation."""

import dataclasses
import json

import pytest

from dv2_jax.config import ConfigError, TaskConfig
from dv2_jax.rollout.question_sources import eval_questions, train_questions


@pytest.fixture
def rows(tmp_path):
    def write(name, count):
        path = tmp_path / name
        lines = [
            {
                "images": [],
                "data_source": "reason",
                "prompt": [{"role": "user", "content": f"{name} {i}?"}],
                "reward_model": {"ground_truth": str(i)},
                "extra_info": {},
            }
            for i in range(count)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return write


def test_a_file_is_split_into_rows_to_train_on_and_its_last_rows_held_out(rows):
    task = TaskConfig(source=rows("a.jsonl", 10), eval_size=3)
    trained, held = train_questions(task), eval_questions(task)
    assert [q.answer for q in trained] == [str(i) for i in range(7)]
    assert [q.answer for q in held] == ["7", "8", "9"]


def test_with_a_separate_eval_file_the_first_is_used_entirely_for_training(rows):
    task = TaskConfig(source=rows("a.jsonl", 10), eval_source=rows("b.jsonl", 6), eval_size=4)
    assert len(train_questions(task)) == 10
    assert [q.text for q in eval_questions(task)] == [f"b.jsonl {i}?" for i in range(4)]
    assert len(eval_questions(dataclasses.replace(task, eval_size=0))) == 6


def test_embedded_questions_may_be_evaluated_on_a_file(rows):
    task = TaskConfig(eval_source=rows("b.jsonl", 2), train_size=5)
    assert len(train_questions(task)) == 5 and len(eval_questions(task)) == 2


@pytest.mark.parametrize("size", (0, 10, 500))
def test_a_file_that_is_too_small_to_split_is_refused(rows, size):
    with pytest.raises(ConfigError, match="task.eval_source"):
        eval_questions(TaskConfig(source=rows("a.jsonl", 10), eval_size=size))


@pytest.mark.parametrize("key", ("source", "eval_source"))
def test_a_missing_file_is_named(key):
    with pytest.raises(ConfigError, match=rf"task\.{key} = 'missing.jsonl'"):
        eval_questions(TaskConfig(**{key: "missing.jsonl"}))
