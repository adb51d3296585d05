"""Tests the written sets by reading them back with the readers of training.

Catches: a field that the reader does not find, images in another order, `images` absent from a row, an interrupted write
that leaves a file, choices whose letters move.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from dv2_jax.agent.prompts import build_messages
from dv2_jax.curation.set_writers import sft_writer, write_rl_file
from dv2_jax.curation.trajectory_text import sft_messages
from dv2_jax.data.question import Question
from dv2_jax.data.rows import read_conversations, read_questions
from dv2_jax.toy.tasks import make_questions


def with_prompt(question: Question):
    return question, [dict(message) for message in build_messages(question, "brief")]


def test_rl_rows_read_back_as_the_same_questions(tmp_path):
    questions = list(make_questions("train", 25))
    extra = Question("x", "long", "reason", "1 + 1?", (), "2", "number", meta={"tolerance": 0.5, "aliases": ["two"]})
    letters = Question("y", "mcq", "perception", "Which?", (questions[0].images[0],) * 2, "B", "choice",
                       meta={"choices": {"A": "red", "B": "blue"}})  # fmt: skip
    wanted = [*questions, extra, letters]
    assert write_rl_file(tmp_path / "rl.parquet", map(with_prompt, wanted)) == 27
    found = list(read_questions(tmp_path / "rl.parquet"))
    for old, new in zip(wanted, found, strict=True):
        for field in ("skill", "data_source", "text", "images", "answer", "verifier"):
            assert getattr(old, field) == getattr(new, field), field
        assert new.messages == build_messages(old, "brief")
    assert found[-2].meta["tolerance"] == 0.5 and found[-2].meta["aliases"] == ["two"]
    assert found[-1].meta["choices"] == ["red", "blue"]


def test_rl_files_are_equal_byte_for_byte(tmp_path):
    rows = [with_prompt(question) for question in make_questions("train", 70)]
    for name in ("a", "b"):
        write_rl_file(tmp_path / name, iter(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_choices_with_other_letters_are_refused(tmp_path):
    question = Question("y", "mcq", "perception", "Which?", (), "B", "choice", meta={"choices": {"B": "a", "C": "b"}})
    with pytest.raises(ValueError, match="'y'.*labels"):
        write_rl_file(tmp_path / "rl.parquet", [with_prompt(question)])
    assert not (tmp_path / "rl.parquet").exists()


def test_conversations_read_back_with_images_always_present(tmp_path):
    question = dataclasses.replace(next(iter(make_questions("train", 1))), text="How many?")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(question.images[0])
    turns = [
        {
            "text": "Look.</think>\n<code>\n```python\nprint(1)\n```\n</code>",
            "observation": "stdout: <image>",
            "images": [],
        },
        {"text": "<think>One.</think>\n<answer>1</answer>", "observation": None, "images": []},
    ]
    prompt = [dict(message) for message in build_messages(question, "brief")]
    with sft_writer(tmp_path / "sft.json") as writer:
        writer.write(sft_messages(prompt, turns), ["images/a.png", "images/a.png"])
        writer.write([{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}], [])
    rows = json.loads((tmp_path / "sft.json").read_text())
    assert [row["images"] for row in rows] == [["images/a.png", "images/a.png"], []]
    first, second = read_conversations(tmp_path / "sft.json")
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert first.messages[2]["content"].startswith("<think>Look.") and first.images == (question.images[0],) * 2
    assert second.images == ()


def test_an_interrupted_write_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), sft_writer(tmp_path / "sft.json") as writer:
        writer.write([], [])
        raise RuntimeError
    assert not (tmp_path / "sft.json").exists()
    with sft_writer(tmp_path / "sft.json"):
        pass
    assert json.loads((tmp_path / "sft.json").read_text()) == []
