"""Tests files in the released formats: fields kept unchanged, and errors that name file, row and field."""

import base64
import io
import json
import sys

import pytest
from PIL import Image

from dv2_jax.data.rows import RowError, read_conversations, read_questions


@pytest.fixture(scope="module")
def encoded_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "blue").save(buffer, format="PNG")
    return buffer.getvalue()


def row(encoded_image, **changes) -> dict:
    base = {
        "images": [{"bytes": encoded_image}],
        "data_source": "search",
        "prompt": [
            {"role": "system", "content": "S\n\n <tool_call>  "},
            {"role": "user", "content": "<image>Who built it?\n\nYou must …"},
        ],
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "Ada", "style": "rule"},
        "extra_info": {"question": "Who built it?", "answer": "Ada", "index": "fvqa_train_3"},
    }
    return {**base, **changes}


def in_json(value: dict) -> dict:
    images = [{"bytes": base64.b64encode(i["bytes"]).decode()} if "bytes" in i else i for i in value["images"]]
    return {**value, "images": images}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(in_json(r), ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_question_with_its_own_messages(tmp_path, encoded_image):
    (question,) = read_questions(write_jsonl(tmp_path / "a.jsonl", [row(encoded_image)]))
    assert question.messages == tuple(row(encoded_image)["prompt"])
    assert (question.text, question.answer, question.images) == ("Who built it?", "Ada", (encoded_image,))
    assert (question.skill, question.data_source, question.verifier) == ("search", "search", "text")
    assert question.meta["index"] == "fvqa_train_3" and question.id == "a:0"


def test_parquet_and_jsonl_give_the_same_questions(tmp_path, encoded_image):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    rows = [row(encoded_image), row(encoded_image, data_source="reason"), *[row(encoded_image)] * 40]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    ours = list(read_questions(tmp_path / "a.parquet"))
    assert ours == list(read_questions(write_jsonl(tmp_path / "a.jsonl", rows))) and len(ours) == 42
    assert len({question.id for question in ours}) == 42


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        list(read_questions(tmp_path / "a.parquet"))


def test_images_may_be_paths_relative_to_the_file(tmp_path, encoded_image):
    (tmp_path / "p.png").write_bytes(encoded_image)
    (question,) = read_questions(write_jsonl(tmp_path / "a.jsonl", [row(encoded_image, images=[{"image": "p.png"}])]))
    assert question.images == (encoded_image,)


def test_a_folder_is_read_file_by_file_in_order_of_name(tmp_path, encoded_image):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row(encoded_image)])
    assert [question.id for question in read_questions(tmp_path)] == ["a:0", "b:0"]


@pytest.mark.parametrize(
    ("source", "truth", "verifier"),
    [
        ("reason", "B", "math"),
        ("perception", "B", "choice"),
        ("vstar-test", "c", "choice"),
        ("perception", "7", "text"),
    ],
)
def test_the_rule_that_checks_an_answer_follows_from_source_and_answer(
    tmp_path, encoded_image, source, truth, verifier
):
    changed = row(encoded_image, data_source=source, reward_model={"ground_truth": truth})
    (question,) = read_questions(write_jsonl(tmp_path / "a.jsonl", [changed]))
    assert question.verifier == verifier


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data_source": "geo"}, "geo"),
        ({"reward_model": {}}, "ground_truth"),
        ({"reward_model": {"ground_truth": 5}}, "int"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"images": [{"image": "missing.png"}]}, "missing.png"),
        ({"images": [{"color": "red"}]}, "bytes"),
        ({"videos": ["a.mp4"]}, "videos, which are not supported"),
    ],
)
def test_a_broken_row_is_named(tmp_path, encoded_image, changes, match):
    path = write_jsonl(tmp_path / "data.jsonl", [row(encoded_image), row(encoded_image, **changes)])
    with pytest.raises(RowError, match=rf"data\.jsonl row 1 \(line 2\).*{match}"):
        list(read_questions(path))


def test_lines_that_are_no_json_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}}\n")
    with pytest.raises(RowError, match=r"a\.jsonl row 0 \(line 1\): is not JSON"):
        list(read_questions(tmp_path / "a.jsonl"))
    with pytest.raises(FileNotFoundError, match="missing"):
        list(read_questions(tmp_path / "missing.jsonl"))


def test_conversations_with_and_without_images_mix(tmp_path, encoded_image):
    """Catches a loader that infers one schema for a file: released files mix rows with and without images."""
    (tmp_path / "p.png").write_bytes(encoded_image)
    text = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<answer>4</answer>"}]
    shown = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "<answer>a</answer>"}]
    rows = [{"messages": text}, {"messages": shown, "images": ["p.png"]}, {"messages": text, "images": None}]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    read = list(read_conversations(tmp_path / "part.json"))
    assert [c.images for c in read] == [(), (encoded_image,), ()] and read[1].messages == tuple(shown)
    (tmp_path / "part.json").write_text(json.dumps([{"images": []}]))
    with pytest.raises(RowError, match=r"part\.json row 0 \(line 1\), messages: field 'messages' is missing"):
        list(read_conversations(tmp_path / "part.json"))
