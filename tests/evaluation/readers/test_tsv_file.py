"""TSV files: pandas is the oracle of cells, columns and image references; faults name file, row, column and fix."""

import base64
import csv
import io
import re

import numpy as np
import pandas
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dv2_jax.config import ConfigError, DataConfig
from dv2_jax.data.faults import RowError
from dv2_jax.evaluation.readers.image_cells import base64_parts, image_cell_issue
from dv2_jax.evaluation.readers.pandas_columns import MISSING
from dv2_jax.evaluation.readers.tsv_file import TsvFile

SKIP = DataConfig(bad_rows="skip", max_bad_fraction=1.0)
IMAGES = [np.random.default_rng(number).bytes(100 + number) for number in range(4)]


def encode(image: bytes) -> str:
    return base64.b64encode(image).decode()


def write(tmp_path, rows, name="Tiny.tsv"):
    """Writes rows as the kit's authors do: pandas, tab separated."""
    path = tmp_path / name
    pandas.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def kit_text(value) -> str:
    """Returns a value as the kit writes it into a prompt; a missing one is not written."""
    return "" if pandas.isna(value) else str(value)


CELLS = st.one_of(
    st.text(st.sampled_from("ab \"'\t\n\r,é中[]"), max_size=8),
    st.sampled_from(["None", "NA", "", "nan", "7", "007", "-3", "2.50", "1e3", "True", "false", "inf", " 5", "1_0"]),
    st.integers(-(10**25), 10**25).map(str),
)


def pandas_keeps_words_for_missing_values(cells: list[str]) -> bool:
    """Returns whether pandas reads `None` or an empty cell of the column as text, which we do not follow.

    It does so in a column of text in which a cell is an integer of 2^64 or more.
    """
    numbers = [int(cell) for cell in cells if re.fullmatch(r"[+-]?[0-9]+", cell.strip())]
    present = [cell for cell in cells if cell not in MISSING]
    return any(number >= 2**64 for number in numbers) and len(present) > len(numbers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tsv")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_tsv_file_reads_every_cell_as_pandas_does(folder, data):
    """Catches quoting, embedded line ends, missing words and column types that differ from what published scores used."""
    width = data.draw(st.integers(1, 4))
    columns = st.lists(data.draw(st.sampled_from([CELLS, st.integers(-9, 99).map(str), CELLS])), min_size=5, max_size=5)
    table = [data.draw(columns) for _ in range(width)]
    assume(not any(pandas_keeps_words_for_missing_values(cells) for cells in table))
    text = io.StringIO()
    # The csv module quotes no carriage return that is not part of its line end, and pandas ends the row there.
    quoting = (
        csv.QUOTE_ALL
        if any("\r" in cell for cells in table for cell in cells)
        else data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    )
    ending = data.draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(text, delimiter="\t", quoting=quoting, lineterminator=ending)
    writer.writerow(["index", *(f"c{number}" for number in range(width))])
    for number, cells in enumerate(zip(*table, strict=True)):
        writer.writerow([f"r{number}", *cells])
    path = folder / "Tiny.tsv"
    path.write_bytes(text.getvalue().encode())
    frame = pandas.read_csv(path, sep="\t", float_precision="round_trip")
    file = TsvFile(path)
    assert file.columns == tuple(frame.columns)
    found = [file.row(i) for i in range(len(file))]
    expected = [{name: kit_text(row[name]) for name in frame} for row in frame.to_dict("records")]
    assert found == expected


def test_tsv_file_reads_the_forms_of_an_image_cell(tmp_path):
    long = [encode(image) for image in IMAGES]
    cells = [long[0], str(long[1:3]), "10", "", long[3], "12"]
    path = write(tmp_path, {"index": range(10, 16), "image": cells, "question": list("abcdef")})
    file = TsvFile(path, ("question",))
    assert [file.images(i) for i in range(6)] == [
        (IMAGES[0],), (IMAGES[1], IMAGES[2]), (IMAGES[0],), (), (IMAGES[3],), (IMAGES[0],),
    ]  # fmt: skip
    assert file.row(1) == {"index": "11", "question": "b"}
    assert [file.image_id(i) for i in range(6)] == ["10", "11", "10", "13", "14", "10"]
    assert file.index(0) == 10 and file.has_integer_index


def test_tsv_file_keeps_an_index_as_text_unless_all_are_integers(tmp_path):
    path = write(tmp_path, {"index": ["1", "2", "x3"], "question": ["a", "b", "c"]})
    file = TsvFile(path)
    assert [file.index(i) for i in range(3)] == ["1", "2", "x3"]
    assert file.position("x3") == 2


def test_tsv_file_finds_images_by_path(tmp_path):
    """Catches a `*_local.tsv` whose absolute paths are those of another machine."""
    folder = tmp_path / "images" / "Tiny"
    folder.mkdir(parents=True)
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    paths = ["0.jpg", "/elsewhere/LMUData/images/Tiny/1.jpg", "['2.jpg', '3.jpg']", ""]
    path = write(tmp_path, {"index": range(4), "image_path": paths}, "Tiny_local.tsv")
    file = TsvFile(path)
    assert [file.images(i) for i in range(4)] == [(IMAGES[0],), (IMAGES[1],), (IMAGES[2], IMAGES[3]), ()]
    assert file.row(2)["image_path"] == "['2.jpg', '3.jpg']"


def test_tsv_file_lists_the_columns_of_another_file(tmp_path):
    path = write(tmp_path, {"id": [1], "query": ["a"], "img": ["b"]})
    with pytest.raises(ConfigError, match=r"Tiny.tsv: no column index, question; it has the columns id, query, img"):
        TsvFile(path, ("question",))


BAD = {
    "not base64": ({2: "!" * 80}, "row 2 (line 4), id '2', image: is not base64"),
    "cut off": ({2: encode(IMAGES[0])[:-1]}, "row 2 (line 4), id '2', image: is base64 that is cut off"),
    "list": ({1: "['" + encode(IMAGES[0]) + "', x]"}, "row 1 (line 3), id '1', image: is a list"),
    "no such index": ({2: "99"}, "row 2 (line 4), id '2', image: '99' is the index of no row"),
    "circle": ({1: "2", 2: "1"}, "row 1 (line 3), id '1', image: '2' is the index of no row"),
    "shares nothing": ({1: "", 2: "1"}, "row 2 (line 4), id '2', image: the row '1', whose image it shares, has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_tsv_file_names_the_fault_of_an_image(case, tmp_path):
    changes, message = BAD[case]
    cells = [changes.get(number, encode(IMAGES[number])) for number in range(4)]
    path = write(tmp_path, {"index": range(4), "image": cells, "question": list("abcd")})
    with pytest.raises(RowError) as raised:
        TsvFile(path)
    assert f"{path} {message}" in str(raised.value)
    assert "Fix: " in str(raised.value) and "--config.data.bad_rows=skip" in str(raised.value)
    file = TsvFile(path, data=SKIP)
    assert file.ids == tuple(str(n) for n in range(4) if n not in changes or (case == "shares nothing" and n == 1))
    assert all(file.images(i) == (IMAGES[int(id_)],) for i, id_ in enumerate(file.ids) if int(id_) not in changes)


def test_tsv_file_leaves_out_rows_that_share_the_image_of_a_row_with_faults(tmp_path):
    cells = ["!" * 80, "0", encode(IMAGES[2])]
    path = write(tmp_path, {"index": range(3), "image": cells})
    with pytest.raises(RowError, match="the row '0', whose image it shares, has faults"):
        TsvFile(path)
    assert TsvFile(path, data=SKIP).ids == ("2",)
    with pytest.raises(RowError, match=r"66.7% of the rows have faults"):
        TsvFile(path, data=DataConfig(bad_rows="skip"))


def test_tsv_file_reports_a_repeated_index(tmp_path):
    path = write(tmp_path, {"index": [1, 2, 1], "question": list("abc")})
    with pytest.raises(RowError, match=r"row 2 \(line 4\), id '1', index: '1' is that of row 0 \(line 2\) too"):
        TsvFile(path)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_tsv_file_reports_a_file_that_is_cut_off(cut, tmp_path):
    """Catches a download that ended in the last row, wherever it ended."""
    path = write(tmp_path, {"index": range(3), "image": [encode(image) for image in IMAGES[:3]], "question": ["q"] * 3})
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content[: len(content) - cut - 1])
    with pytest.raises(RowError, match="cut off"):
        TsvFile(path)
    path.write_bytes(content)  # only the line end is missing, as many editors leave it
    assert len(TsvFile(path)) == 3


def test_tsv_file_reports_a_quotation_mark_that_is_never_closed(tmp_path):
    path = tmp_path / "Tiny.tsv"
    path.write_text('index\tquestion\n1\ta\n2\t"b\n3\tc\n')
    with pytest.raises(
        RowError, match=r"line 3: .* opens with a quotation mark .* not closed. Fix: the file is cut off"
    ):
        TsvFile(path)


def test_tsv_file_reports_rows_of_another_width_and_encoding(tmp_path):
    path = tmp_path / "Tiny.tsv"
    path.write_bytes(b"index\tquestion\n1\ta\tb\n2\tgr\xfcn\n3\tc\n")
    with pytest.raises(RowError) as raised:
        TsvFile(path)
    assert "row 0 (line 2): has 3 cells, but the header names 2 columns" in str(raised.value)
    assert "row 1 (line 3), id '2', question: byte 2 of the cell is not UTF-8" in str(raised.value)
    assert TsvFile(path, data=SKIP).ids == ("3",)


@pytest.mark.parametrize("content", ["", "index\tquestion\n"])
def test_tsv_file_needs_rows(content, tmp_path):
    path = tmp_path / "Tiny.tsv"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is empty|no rows"):
        TsvFile(path)


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=3), st.booleans())
def test_image_cells_accept_what_base64_writes_and_nothing_shorter(images, as_list):
    """Catches a check of base64 that rejects a valid cell, or accepts one with a character missing."""
    texts = [encode(image) for image in images[: None if as_list else 1]]
    cell = (str(texts) if as_list else texts[0]).encode()
    assert base64_parts(cell) == [text.encode() for text in texts]
    assert image_cell_issue(cell) is None
    assert image_cell_issue((str([texts[0][:-1]]) if as_list else texts[0][:-1]).encode()) is not None
