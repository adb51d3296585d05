"""Which questions train and which evaluate."""

import dataclasses
import json

import pytest

from dv2_jax.config import ConfigError, TaskConfig
from dv2_jax.rollout.question_sources import benchmark, held_out, train_questions


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
    trained, held = train_questions(task), held_out(task)
    assert [q.answer for q in trained] == [str(i) for i in range(7)]
    assert [q.answer for q in held] == ["7", "8", "9"]


def test_another_file_of_held_out_questions_leaves_the_first_whole(rows):
    task = TaskConfig(source=rows("a.jsonl", 10), eval_source=rows("b.jsonl", 6), eval_size=4)
    assert len(train_questions(task)) == 10
    assert [q.text for q in held_out(task)] == [f"b.jsonl {i}?" for i in range(4)]
    assert len(held_out(dataclasses.replace(task, eval_size=0))) == 6


def test_embedded_questions_may_be_evaluated_on_a_file(rows):
    task = TaskConfig(eval_source=rows("b.jsonl", 2), train_size=5)
    assert len(train_questions(task)) == 5 and len(held_out(task)) == 2


def test_where_nothing_is_trained_a_file_is_read_from_its_first_row(rows):
    task = TaskConfig(source=rows("a.jsonl", 10), eval_size=3)
    assert [q.answer for q in benchmark(task)] == ["0", "1", "2"]
    assert len(benchmark(dataclasses.replace(task, eval_size=0))) == 10


@pytest.mark.parametrize("size", (0, 10, 500))
def test_a_file_that_is_too_small_to_split_is_refused(rows, size):
    with pytest.raises(ConfigError, match="task.eval_source"):
        held_out(TaskConfig(source=rows("a.jsonl", 10), eval_size=size))


@pytest.mark.parametrize("key", ("source", "eval_source"))
def test_a_file_that_is_not_there_is_named(key):
    with pytest.raises(ConfigError, match=rf"task\.{key} = 'nowhere.jsonl'"):
        held_out(TaskConfig(**{key: "nowhere.jsonl"}))
