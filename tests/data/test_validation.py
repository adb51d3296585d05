"""The check of data files: every fault is named with row, field and fix, and a valid row has none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.data.faults import TOO_LONG, DataReport, RowError
from dv2_jax.data.rows import read_conversations, read_questions
from dv2_jax.data.validation import check_source
from tests.data.row_cases import (
    BASE64,
    PNG,
    RL_FAULTS,
    SFT_FAULTS,
    conversation_check,
    question_check,
    rl_row,
    sft_row,
    user,
    write_jsonl,
)


@pytest.mark.parametrize(
    ("row", "cases", "check"),
    [(rl_row, RL_FAULTS, question_check()), (sft_row, SFT_FAULTS, conversation_check())],
    ids=["rl", "sft"],
)
def test_every_fault_of_a_table_is_found_with_its_row_and_field(tmp_path, row, cases, check):
    """Catches: a fault that hides a later one, a good row that is blamed, a message without field, fix or bound."""
    good = row()
    rows = [value for _, changes, _, _ in cases for value in (good, row(**changes))]
    report = check_source(write_jsonl(tmp_path / "data.jsonl", rows), check)
    found = {}
    for fault in report.faults:
        found.setdefault(fault.row, []).append(fault)
        assert fault.line == fault.row + 1 and fault.fix and len(str(fault)) < 900, fault
    assert report.rows == len(rows)
    for index, (name, _, field, words) in enumerate(cases):
        faults = found.pop(2 * index + 1, [])
        assert [fault for fault in faults if fault.field == field and words in f"{fault.problem}. Fix: {fault.fix}"], (
            name,
            list(map(str, faults)),
        )
    assert found == {}


@pytest.mark.parametrize(
    ("row", "cases", "read"), [(rl_row, RL_FAULTS, read_questions), (sft_row, SFT_FAULTS, read_conversations)]
)
def test_the_reader_never_fails_with_anything_but_a_row_error(tmp_path, row, cases, read):
    """Catches an AttributeError or StopIteration while reading, which names no row."""
    for name, changes, _, _ in cases:
        path = write_jsonl(tmp_path / "data.jsonl", [row(**changes)])
        try:
            list(read(path))
        except RowError as error:
            assert "data.jsonl row 0 (line 1)" in str(error), name


def test_all_faults_of_one_row_are_reported(tmp_path):
    row = rl_row(data_source="geo", reward_model={"ground_truth": 5}, images="a.png", extra_info="x")
    report = check_source(write_jsonl(tmp_path / "a.jsonl", [row, rl_row()]), question_check())
    assert {fault.field for fault in report.faults} == {
        "data_source", "reward_model.ground_truth", "images", "extra_info"
    }  # fmt: skip
    assert report.bad_rows == {(str(tmp_path / "a.jsonl"), 0)} and report.usable == 1


@pytest.mark.parametrize("value", [3, "text", None, [1], True])
def test_a_row_that_is_no_object_is_named(tmp_path, value):
    for name, dump in (("a.jsonl", lambda rows: "\n".join(map(json.dumps, rows))), ("a.json", json.dumps)):
        (tmp_path / name).write_text(dump([rl_row(), value, rl_row()]))
        (fault,) = check_source(tmp_path / name, question_check()).faults
        assert fault.row == 1 and "not an object" in fault.problem
        (tmp_path / name).unlink()


FILES = {
    "bom.jsonl": (b"\xef\xbb\xbf" + json.dumps(rl_row()).encode(), None, None),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps([rl_row()]).encode(), None, None),
    "spaced.json": (("\n\n [\n" + json.dumps(rl_row(), indent=2) + "\n ]\n\n").encode(), None, None),
    "gbk.jsonl": ('{"a": "法国"}\n'.encode("gbk"), 0, "byte 7 of the file is not UTF-8"),
    "gbk.json": ('[{"a": "法国"}]'.encode("gbk"), None, "byte 8 is not UTF-8"),
    "utf16.jsonl": (json.dumps(rl_row()).encode("utf-16"), None, "UTF-16"),
    "utf16.json": (json.dumps([rl_row()]).encode("utf-16"), None, "UTF-16"),
    "comma.json": (("[" + json.dumps(rl_row()) + ",\n]").encode(), None, "line 2: a comma after the last row, 0"),
    "comma.jsonl": ((json.dumps(rl_row()) + ",\n").encode(), 0, "is not JSON: Extra data"),
    "cut.json": (json.dumps([rl_row(), rl_row()]).encode()[:-40], None, "is not JSON"),
    "cut2.json": (json.dumps([rl_row(), rl_row()]).encode()[:-1], None, "the file ends inside the list, after row 1"),
    "cut.jsonl": ((json.dumps(rl_row()) * 1)[:-9].encode(), 0, "is not JSON"),
    "object.json": (json.dumps({"rows": [rl_row()]}).encode(), None, "holds an object, not a list"),
    "list.jsonl": (json.dumps([rl_row()]).encode(), None, "name it .json"),
    "tail.json": ((json.dumps([rl_row()]) + "]").encode(), None, "more text after"),
    "missing comma.json": (f"[{json.dumps(rl_row())} {json.dumps(rl_row())}]".encode(), None, "after row 0"),
    "deep.jsonl": (b"[" * 0 + b'{"a":' * 100_000, 0, "nested too deeply"),
    "empty.json": (b"", None, "is empty"),
    "empty.jsonl": (b"\n \n", None, "holds no rows"),
    "empty list.json": (b"[]", None, "holds no rows"),
    "text.parquet": (b"PAR1 this is no parquet file", None, "no parquet file, or cut off"),
    "empty.parquet": (b"", None, "no parquet file, or cut off"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_or_named_with_the_place(tmp_path, name):
    """Catches: a byte order mark that makes the first row invalid; another encoding or a cut file without a place."""
    data, row, words = FILES[name]
    (tmp_path / name).write_bytes(data)
    report = check_source(tmp_path / name, question_check())
    if words is None:
        assert report.is_clean and report.rows == 1
        return
    (fault,) = report.faults
    assert fault.row == row and words in str(fault) and str(tmp_path / name) in str(fault)
    assert len(str(fault)) < 700 and "\n" not in str(fault)
    assert not report.is_clean


def test_a_cut_parquet_file_names_the_file_and_loses_no_other_file(tmp_path):
    """Catches: `ArrowInvalid` without a file name; the files after it in the folder not being checked."""
    import pyarrow
    import pyarrow.parquet

    rows = [rl_row(images=[{"bytes": PNG}])] * 50
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    write_jsonl(tmp_path / "b.jsonl", [rl_row(data_source="geo")])
    report = check_source(tmp_path, question_check())
    assert [Path(fault.file).name for fault in report.faults] == ["a.parquet", "b.jsonl"]
    assert "bytes" in report.faults[0].problem
    with pytest.raises(RowError, match=r"a\.parquet: no parquet file, or cut off"):
        list(read_questions(tmp_path / "a.parquet"))


def test_repeated_ids_and_file_names_are_faults(tmp_path):
    rows = [rl_row(id="x"), rl_row(id="y"), rl_row(id="x"), rl_row()]
    (fault,) = check_source(write_jsonl(tmp_path / "a.jsonl", rows), question_check()).faults
    assert (fault.row, fault.id, fault.field) == (2, "x", "id") and "a.jsonl row 0" in fault.problem
    write_jsonl(tmp_path / "a.json", [])
    with pytest.raises(RowError, match="same name"):
        check_source(tmp_path, question_check())


def test_a_huge_image_is_refused_without_decoding_it(tmp_path, monkeypatch):
    """Catches an image of a few kilobytes that decodes to gigabytes."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 500)
    (fault,) = check_source(write_jsonl(tmp_path / "a.jsonl", [rl_row()]), question_check()).faults
    assert fault.field == "images[0]" and "exceeds limit" in fault.problem


def test_a_long_list_of_rows_is_parsed_across_buffers(tmp_path, monkeypatch):
    """Catches a row, a number or a multi-byte character that is cut where a block of the file ends."""
    monkeypatch.setattr("dv2_jax.data.row_files._CHUNK_BYTES", 7)
    rows = [sft_row(messages=[user(f"<image>é法🙂 {i}"), user("a", "assistant")]) for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    read = list(read_conversations(tmp_path / "a.json"))
    assert [list(c.messages) for c in read] == [row["messages"] for row in rows]
    (tmp_path / "a.json").write_text("[123456789, 12345678901234]")
    values = [fault.problem for fault in check_source(tmp_path / "a.json", conversation_check()).faults]
    assert "(123456789)" in values[0] and "(12345678901234)" in values[1]


printable = st.text(st.characters(codec="utf-8"), max_size=30).filter(lambda t: "<image>" not in t)
visible = printable.filter(lambda text: text.strip())


@given(
    st.lists(visible, min_size=1, max_size=3), st.lists(visible, max_size=2), st.booleans(), st.integers(0, 2), visible,
    st.sampled_from(("perception", "reason", "search", "vstar-test")),
)  # fmt: skip
def test_a_valid_row_has_no_fault(tmp_path_factory, turns, system, mixed, images, answer, source):
    """Catches a rule that refuses what the format allows: texts of any script, rows with and without images."""
    path = tmp_path_factory.mktemp("valid") / "a.jsonl"
    prompt = [user(text, "system") for text in system[:1]] + [user("<image>" * images + turns[0])]
    encoded = [{"bytes": BASE64}] * images
    row = rl_row(prompt=prompt, images=encoded if images or mixed else ..., reward_model={"ground_truth": answer})
    row["data_source"] = source
    assert check_source(write_jsonl(path, [row]), question_check(max_total_tokens=4000), threads=1).faults == []
    dialogue = prompt + [user(turns[0], "assistant")]
    for text in turns[1:]:
        dialogue += [user(text), user(text, "assistant")]
    row = {"messages": dialogue, "images": encoded if images or mixed else None}
    assert check_source(write_jsonl(path, [row]), conversation_check(row_tokens=9000), threads=1).faults == []


@given(visible)
def test_the_token_count_is_that_of_the_encoder(tmp_path_factory, text):
    """Catches a count that differs from the prompt's length, so that a row is too long at run time only."""
    from dv2_jax.config import ImageConfig
    from dv2_jax.data.chat_encoder import ChatEncoder

    check = question_check()
    path = write_jsonl(tmp_path_factory.mktemp("count") / "a.jsonl", [rl_row(prompt=[user("<image>" + text)])])
    (question,) = read_questions(path)
    encoder = ChatEncoder(check.tokenizer, ImageConfig(), ())
    images = [encoder.encode_image(image) for image in question.images]
    assert check.count_tokens(question) == len(encoder.encode_prompt(question.messages, images).token_ids)


def test_rows_that_are_too_long_are_counted_apart(tmp_path):
    long = rl_row(prompt=[user("<image>" + "Who? " * 400)])
    report = check_source(write_jsonl(tmp_path / "a.jsonl", [long, rl_row(), long]), question_check())
    assert len(report.long_rows) == 2 and not report.bad_rows and report.is_clean and report.usable == 1
    assert {fault.kind for fault in report.faults} == {TOO_LONG}
    report = check_source(write_jsonl(tmp_path / "a.jsonl", [long] * 3), question_check())
    assert not report.is_clean and "0 usable, 3 too long" in report.summary()


def test_a_prompt_may_fill_all_but_one_token(tmp_path):
    """Catches an off-by-one: the policy needs room for one token."""
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row()])
    (question,) = read_questions(path)
    tokens = question_check().count_tokens(question)
    assert check_source(path, question_check(max_total_tokens=tokens + 1)).usable == 1
    assert check_source(path, question_check(max_total_tokens=tokens)).usable == 0


def test_the_first_rows_only(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row(), rl_row(), rl_row(data_source="geo")])
    assert check_source(path, question_check(), limit=2).is_clean
    assert len(list(read_questions(path, limit=2))) == 2


def test_a_report_survives_json(tmp_path):
    report = check_source(write_jsonl(tmp_path / "a.jsonl", [rl_row(data_source="geo")]), question_check())
    again = DataReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.faults == report.faults and again.summary() == report.summary()


class Counting:
    """Counts the rows that are checked."""

    def __init__(self, check):
        self.check, self.rows = check, 0
        original = check.issues

        def issues(record):
            self.rows += 1
            return original(record)

        check.issues = issues


def test_a_second_check_of_the_same_content_is_read_from_the_cache(tmp_path):
    """Catches: a cache that outlives a change of the file, of an image, of a setting, or of a file that appears."""
    (tmp_path / "p.png").write_bytes(PNG)
    rows = [rl_row(images=["p.png"]), rl_row(images=["later.png"])]
    path, cache = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "cache"

    def check(**changes):
        counting = Counting(question_check(**changes))
        return counting, check_source(path, counting.check, cache_folder=cache)

    counting, first = check()
    assert counting.rows == 1 and not first.cached
    counting, second = check()
    assert counting.rows == 0 and second.cached and second.faults == first.faults and second.rows == 2
    os.utime(path)  # the same content under another time
    assert check()[1].cached
    assert not check(max_total_tokens=299)[1].cached
    (tmp_path / "later.png").write_bytes(PNG)
    counting, fixed = check()
    assert not fixed.cached and fixed.is_clean
    (tmp_path / "p.png").unlink()
    assert [fault.row for fault in check()[1].faults] == [0]
    write_jsonl(path, rows[1:])
    assert check()[1].rows == 1
    for entry in cache.iterdir():
        entry.write_text("{")  # damaged: the data is checked again
    assert not check()[1].cached


def test_progress_reaches_the_number_of_rows(tmp_path):
    seen = []
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row()] * 30)
    check_source(path, question_check(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (30, 30) and [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Catches a check that keeps rows, or their images, until the end: 120 MB of images must not stay in memory."""
    image = BASE64 + base64_padding(60_000)
    program = (
        "import re, sys\n"
        "from tests.data.row_cases import question_check\n"
        "from dv2_jax.data.validation import check_source\n"
        "report = check_source(sys.argv[1], question_check(), threads=2)\n"
        "peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())\n"  # not inherited, unlike ru_maxrss
        "print(report.rows, int(peak[1]) // 1000)\n"
    )
    peak = {}
    for count in (100, 2000):
        for name in ("jsonl", "json"):
            rows = [rl_row(images=[{"bytes": image}]) for _ in range(count)]
            path = tmp_path / f"{count}.{name}"
            path.write_text(json.dumps(rows)) if name == "json" else write_jsonl(path, rows)
            shown = subprocess.run(
                [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True,
                cwd=Path(__file__).resolve().parents[2],
            )  # fmt: skip
            rows_read, peak[name, count] = map(int, shown.stdout.split())
            assert rows_read == count
    for name in ("jsonl", "json"):
        assert peak[name, 2000] - peak[name, 100] < 40, peak  # MB; the file has 160 MB


def base64_padding(size: int) -> str:
    """Returns base64 text to append to that of a PNG: bytes after its end, which decoders ignore."""
    return "AAAA" * (size // 3)
