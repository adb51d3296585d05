"""Tests the forms of rows that sources may have, and that released rows leave a curation as they entered it.

Catches: rows of a known format that are refused, a reference that is lost in a CSV cell, a prompt or an image that changes
on its way, fields that one data source has and another lacks, and rows that cannot be used and end the run.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dv2_jax import curate
from dv2_jax.config import ConfigError, load
from dv2_jax.curation.curation_rows import RowStore, Shard
from dv2_jax.curation.sources import run_sources
from dv2_jax.data.rows import RowError, read_conversations, read_questions
from tests.curation import small_sets
from tests.data.row_cases import png


def config(tmp_path, source, *overrides):
    return load(
        [f"--config.run.root={tmp_path}", f"--config.curate.sources={source}", *overrides],
        command="curate",
        default_config="configs/curate.py",
    )


def rows(tmp_path, source, *overrides):
    settings = config(tmp_path, source, *overrides)
    return [row for found in run_sources(settings) for row in found.rows(settings)]


def test_rows_of_mmsearch_r1_become_search_questions(tmp_path):
    """Catches its own prompt reaching our policy, and accepted answers that are lost."""
    row = {
        "prompt": [
            {"role": "system", "content": "Use <search>."},
            {"role": "user", "content": "<image>\nWho built it?"},
        ],
        "images": [{"bytes": png()}],
        "image_urls": None,
        "reward_model": {
            "candidate_answers": '["G. Eiffel", "Eiffel"]',
            "ground_truth": "Gustave Eiffel",
            "style": "rule",
        },
        "data_source": "mmsearch_r1/fvqa_train",
        "data_id": "fvqa_train_17",
        "category": "search_required",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "fvqa.parquet")
    (found,) = rows(tmp_path, f"fvqa={tmp_path}/fvqa.parquet;Apache-2.0")
    question = found.question
    assert (question.id, question.data_source, question.answer) == ("fvqa/fvqa_train_17", "search", "Gustave Eiffel")
    assert question.text == "Who built it?" and question.messages is None and question.images == (png(),)
    assert question.meta["aliases"] == ["G. Eiffel", "Eiffel"] and question.meta["index"] == "fvqa_train_17"
    assert (found.source, found.license, found.form) == ("fvqa", "Apache-2.0", "question")


def test_plain_rows_of_csv_and_jsonl(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    encoded = base64.b64encode(png(size=(60, 50), seed=2)).decode()
    with open(tmp_path / "mine.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "answer", "image", "tolerance", "choices", "verifier"])
        writer.writerow(["q1", 'How wide,\nin "cm"?', "3.5", "a.png", "0.1", "", "number"])
        writer.writerow(["q2", "Which?", "B", encoded, "", '["red", "blue"]', "choice"])
        writer.writerow(["", "2 + 2?", "4", "", "", "", ""])
        writer.writerow(["q4", "Which two?", "both", f'["a.png", "{encoded}"]', "", "", ""])
    first, second, third, fourth = (row.question for row in rows(tmp_path, f"mine={tmp_path}/mine.csv"))
    assert (first.id, first.text, first.answer, first.verifier) == ("mine/q1", 'How wide,\nin "cm"?', "3.5", "number")
    assert first.images == (png(),) and first.meta["tolerance"] == 0.1 and first.data_source == "perception"
    assert second.images == (png(size=(60, 50), seed=2),) and second.meta["choices"] == ["red", "blue"]
    assert (third.id, third.data_source, third.images) == ("mine/mine:2", "reason", ())
    assert [len(image) > 0 for image in fourth.images] == [True, True]

    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": 4, "aliases": ["four"]}) + "\n")
    (only,) = rows(tmp_path, f"other={tmp_path}/mine.jsonl;CC0;long_cot")
    assert only.question.answer == "4" and only.question.meta["aliases"] == ["four"]
    assert (only.license, only.form, only.question.data_source) == ("CC0", "long_cot", "reason")


@pytest.mark.parametrize(
    "lines, problem",
    [
        ("question,answer\na,b,c\n", "row 0 .*has 3 cells for 2 columns"),
        ("question,answer\n2 + 2?,\n", "row 0 .*answer: is blank"),
        ("question,question\na,b\n", "two columns with the name 'question'"),
        ("frage,antwort\na,b\n", "the fields frage, antwort, which no known format has"),
        ('question,answer\n"a,b\n', "is not CSV"),
        ("", "no first line with the names"),
        ("question,answer,tolerance\na,1,wide\n", "tolerance: is 'wide', no number"),
        ("question,answer,image\na,1,missing.png\n", "cannot read 'missing.png'"),
    ],
)
def test_a_fault_of_a_csv_file_names_its_place_and_fix(tmp_path, lines, problem):
    (tmp_path / "mine.csv").write_text(lines)
    with pytest.raises(RowError, match=problem) as caught:
        rows(tmp_path, f"mine={tmp_path}/mine.csv")
    assert "Fix:" in str(caught.value)


def test_rows_that_cannot_be_used_cost_these_rows_where_that_is_permitted(tmp_path, caplog):
    (tmp_path / "mine.csv").write_text("question,answer\na,\nb,2\nc,\nd,4\n")
    source = f"mine={tmp_path}/mine.csv"
    with pytest.raises(
        RowError, match=r"(?s)4 rows, 2 usable.*row 0 .*row 2 .*data.bad_rows=skip"
    ):  # all faults at once
        rows(tmp_path, source)
    with pytest.raises(RowError, match="50.0% of the rows have faults, more than data.max_bad_fraction"):
        rows(tmp_path, source, "--config.data.bad_rows=skip")
    found = rows(tmp_path, source, "--config.data.bad_rows=skip", "--config.data.max_bad_fraction=0.5")
    assert [row.question.text for row in found] == ["b", "d"] and "left out: 2 of 4 rows" in caplog.text


def test_a_source_that_changes_after_an_interrupted_reading_is_refused(tmp_path):
    """Catches rows of two versions of a file in one run: the faulty file was read up to its end, and then fixed."""
    path, stages = tmp_path / "mine.csv", "--config.curate.stages=read,mix"
    path.write_text("question,answer\na,1\nb,\n")
    with pytest.raises(RowError, match="answer: is blank"):
        curate.run(config(tmp_path, f"mine={path}", stages))
    path.write_text("question,answer\na,1\nb,2\n")
    curate.run(config(tmp_path, f"mine={path}", stages))
    assert len(list(read_questions(tmp_path / "curate" / "output" / "rl.parquet"))) == 2
    other = "--config.run.name=other"
    path.write_text("question,answer\na,1\nb,\n")
    with pytest.raises(RowError):
        curate.run(config(tmp_path, f"mine={path}", stages, other))
    path.write_text("question,answer\nb,2\n")
    with pytest.raises(ConfigError, match="'mine/mine:0' has changed since it was stored"):
        curate.run(config(tmp_path, f"mine={path}", stages, other))


def test_shards_store_every_row_once_and_convert_only_their_own(tmp_path):
    """Catches rows that no shard or two shards have, and a shard that reports the faults of others' rows."""
    path, stages = tmp_path / "mine.csv", "--config.curate.stages=read"
    path.write_text("question,answer\n" + "".join(f"q{number},{number}\n" for number in range(40)))
    settings = config(tmp_path, f"mine={path}")
    (source,) = run_sources(settings)
    parts = [[row.id for row in source.rows(settings, Shard(index, 3))] for index in range(3)]
    assert sorted(sum(parts, [])) == sorted(f"mine/mine:{number}" for number in range(40)) and all(parts)
    for index in range(3):
        curate.run(config(tmp_path, f"mine={path}", stages, f"--config.curate.shard={index}/3"))
    with closing(RowStore(tmp_path / "curate", Shard(1, 3))) as store:
        assert store.own_ids() == sorted(parts[1]) and store.ids() == sorted(sum(parts, []))


@pytest.mark.parametrize("count", [1, 2])
def test_two_rows_with_the_same_id_are_refused(tmp_path, count):
    """Catches a second row that replaces the first, also where shards read them at the same time."""
    path, stages = tmp_path / "mine.csv", "--config.curate.stages=read,mix"
    path.write_text("id,question,answer\nz,zero,0\na,one,1\na,two,2\n")
    if count == 2:  # positions decide on the shard, not ids
        assert Shard(0, 2).has("mine/mine.csv:1") != Shard(0, 2).has("mine/mine.csv:2")
    with pytest.raises(ConfigError, match="two rows.* the (same )?id"):
        for index in range(count):
            curate.run(
                config(tmp_path, f"mine={path}", stages.replace(",mix", ""), f"--config.curate.shard={index}/{count}")
            )
        curate.run(config(tmp_path, f"mine={path}", stages, f"--config.curate.shard=0/{count}"))


@pytest.mark.parametrize(
    "source", ["a=/tmp;MIT;wrong", "a=/tmp;MIT;search;more", "=/tmp", "a/b=/tmp", "a=/does/not/exist"]
)
def test_a_source_that_cannot_be_used_is_refused(tmp_path, source):
    with pytest.raises(ConfigError, match="curate.sources"):
        rows(tmp_path, source)


def test_released_rl_rows_leave_as_they_entered(tmp_path):
    """Two parts, all data sources, fields that only some rows have: what the rows had is unchanged."""
    source = small_sets.write_rl(tmp_path / "rl")
    curate.run(config(tmp_path, f"rl={source}", "--config.curate.stages=read,mix"))
    written = pq.read_table(tmp_path / "curate" / "output" / "rl.parquet").to_pylist()
    wanted = small_sets.rl_rows()
    assert len(written) == len(wanted)
    by_index = {row["extra_info"]["index"]: row for row in written}
    for row in wanted:
        found = by_index[row["extra_info"]["index"]]
        for name in ("data_source", "prompt", "images", "env_name", "reward_model"):
            assert found[name] == row[name], name
        for name, value in row["extra_info"].items():
            stored = found["extra_info"][name]
            assert (json.loads(stored) if name == "box" else stored) == value, name
    questions = {question.meta["index"]: question for question in read_questions(source)}
    for question in read_questions(tmp_path / "curate" / "output" / "rl.parquet"):
        before = questions[question.meta["index"]]
        for name in ("data_source", "text", "images", "answer", "verifier", "messages"):
            assert getattr(question, name) == getattr(before, name), name


def test_released_cold_start_rows_leave_as_they_entered(tmp_path):
    """`images` is null, absent or empty in rows without images, and always present afterwards."""
    source = small_sets.write_conversations(tmp_path / "sft")
    curate.run(config(tmp_path, f"sft={source}", "--config.curate.stages=read,mix"))
    output = tmp_path / "curate" / "output"
    written = json.loads((output / "sft.json").read_text())
    wanted = small_sets.conversations(tmp_path / "sft")
    assert [row["messages"] for row in written] == [row["messages"] for row in wanted]
    assert all(isinstance(row["images"], list) for row in written)
    before, after = (list(read_conversations(path)) for path in (source, output / "sft.json"))
    assert [row.images for row in before] == [row.images for row in after]


def test_stored_trajectories_are_executed_again(tmp_path):
    """Catches an invented output that is kept, and a row that is dropped for nothing. The real tools service runs."""
    source = small_sets.write_conversations(tmp_path / "sft")
    curate.run(config(tmp_path, f"sft={source}", "--config.curate.stages=read,verify,mix"))
    output = tmp_path / "curate" / "output"
    lines = [json.loads(line) for line in (output / "provenance.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["cold_start"] * 3 + ["dropped", "cold_start"]
    assert lines[3]["reason"] == "turn 1: the stored output differs from that of the execution"
    rows_ = json.loads((output / "sft.json").read_text())
    wanted = small_sets.conversations(tmp_path / "sft")
    assert [row["messages"] for row in rows_] == [row["messages"] for index, row in enumerate(wanted) if index != 3]


def test_every_form_is_the_only_one_that_recognizes_its_rows(tmp_path):
    from dv2_jax.curation.source_form import FORMS

    samples = [
        small_sets.rl_rows()[0],
        small_sets.conversations(tmp_path)[0],
        {"question": "a", "answer": "b"},
        {"prompt": [], "data_id": "x", "reward_model": {"candidate_answers": []}},
    ]
    forms = [FORMS.get(name)() for name in FORMS.names()]
    recognized = [[form.name for form in forms if form.recognizes(sample)] for sample in samples]
    assert recognized == [["released_rl"], ["released_sft"], ["plain"], ["mmsearch_r1"]]
    assert dataclasses.is_dataclass(run_sources(config(tmp_path, "embedded"))[0])
