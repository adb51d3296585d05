"""Parquet, JSON and JSONL files of benchmarks: the same questions from each, images on demand, faults by file and row."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dv2_jax.config import ConfigError, DataConfig
from dv2_jax.data.faults import RowError
from dv2_jax.data.question import Question
from dv2_jax.evaluation.readers.file_rows import count_rows
from dv2_jax.evaluation.readers.table_file import IMAGE_DIGEST, read_table

IMAGES = [np.random.default_rng(number).bytes(50) for number in range(3)]
COLUMNS = ("name", "query", "picture")


def parse(row, number, reader):
    text, images = reader.text(row, "query", "query"), ()
    if row["picture"] is not None:
        images = (reader.image(row["picture"], "picture"),)
    return (
        None if reader.issues else Question(row["name"], "plain", "search", text, images, "", meta={"number": number})
    )


def rows_with(make_image) -> list[dict]:
    images = [make_image(0), None, make_image(1), make_image(0)]
    return [{"name": f"r{n}", "query": f"question {n}", "picture": image} for n, image in enumerate(images)]


def write(path: Path, rows) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_bytes(number):
    return {"bytes": IMAGES[number], "path": f"{number}.png"}


def as_base64(number):
    return {"bytes": base64.b64encode(IMAGES[number]).decode()}


def as_path(number):
    return f"images/{number}.png"


CASES = [
    ("t.parquet", as_bytes),
    ("t.json", as_base64),
    ("t.jsonl", as_base64),
    ("t.json", as_path),
    ("t.parquet", as_path),
]


@pytest.mark.parametrize(("name", "make_image"), CASES)
def test_read_table_gives_the_same_questions_from_every_format(name, make_image, tmp_path):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(IMAGES):
        (tmp_path / "images" / f"{number}.png").write_bytes(image)
    path = write(tmp_path / name, rows_with(make_image))
    questions = read_table([path], COLUMNS, parse)
    assert questions.ids() == ["r0", "r1", "r2", "r3"]
    assert [question.images for question in questions] == [(IMAGES[0],), (), (IMAGES[1],), (IMAGES[0],)]
    assert [question.text for question in questions.texts] == [f"question {n}" for n in range(4)]
    assert not any(question.images for question in questions.texts)
    digests = [question.meta.get(IMAGE_DIGEST) for question in questions.texts]
    assert digests[0] == digests[3] != digests[2] and digests[1] is None
    assert count_rows(path) == 4


def test_read_table_numbers_the_rows_of_several_files(tmp_path):
    rows = rows_with(as_bytes)
    files = [write(tmp_path / "a.parquet", rows[:2]), write(tmp_path / "b.parquet", rows[2:])]
    questions = read_table(files, COLUMNS, parse)
    assert [question.meta["number"] for question in questions] == [0, 1, 2, 3]


def test_read_table_lists_the_columns_of_another_file(tmp_path):
    path = write(tmp_path / "t.parquet", [{"question": "?", "image": b"x"}])
    with pytest.raises(
        ConfigError, match=r"t.parquet: no column name, query, picture; it has the columns question, image"
    ):
        read_table([path], COLUMNS, parse)


def test_read_table_names_bad_rows_and_leaves_them_out(tmp_path):
    rows = rows_with(as_base64)
    rows[1]["query"] = " "
    rows[2]["name"] = "r0"
    rows[3]["picture"] = {"bytes": "?"}
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(RowError) as raised:
        read_table([path], COLUMNS, parse)
    for message in (
        "row 1 (line 2), query: is blank",
        "row 2 (line 3), id 'r0', id: 'r0' is that of t.jsonl row 0 too",
        "row 3 (line 4), picture: bytes is not base64",
    ):
        assert message in str(raised.value)
    skip = DataConfig(bad_rows="skip", max_bad_fraction=0.8)
    assert read_table([path], COLUMNS, parse, skip).ids() == ["r0"]
    with pytest.raises(RowError, match=r"75.0% of the rows have faults, more than data.max_bad_fraction = 5.0%"):
        read_table([path], COLUMNS, parse, DataConfig(bad_rows="skip"))


def test_read_table_reports_a_file_that_is_cut_off(tmp_path):
    path = write(tmp_path / "t.parquet", rows_with(as_bytes))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RowError, match="no parquet file, or cut off"):
        read_table([path], COLUMNS, parse)
    assert count_rows(path) is None


def test_read_table_reports_a_full_disk(tmp_path, monkeypatch):
    """Catches a traceback from the temporary file of images."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    path = write(tmp_path / "t.parquet", rows_with(as_bytes))
    with pytest.raises(
        RowError, match=r"No space left on device. Fix: make room, or name another folder with \$TMPDIR"
    ):
        read_table([path], COLUMNS, parse)
