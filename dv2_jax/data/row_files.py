"""Reads the rows of parquet, JSON, JSONL and CSV files one at a time, before anything is known about their fields.

A row that cannot be parsed is returned with its issue; a file that cannot be read further raises `FileFault`. Memory
holds one batch of parquet rows, or one JSON row and a buffer.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.data.faults import Fault, Issue, RowError, clip, clip_text
from dv2_jax.files import DATA_ENDINGS

QUESTION_ENDINGS = DATA_ENDINGS
CONVERSATION_ENDINGS = (".jsonl", ".json")
SOURCE_ENDINGS = (*DATA_ENDINGS, ".csv")
_BATCH_ROWS = 16  # parquet rows decoded at a time
_CHUNK_BYTES = 1 << 20
_MAX_ROW_CHARS = 1 << 30  # of one row in a JSON list
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TO_UTF8 = "convert the file to UTF-8, e.g. `iconv -f GBK -t UTF-8 OLD > NEW`"
_NOT_JSON = "write one JSON value per row; `python -m json.tool FILE` shows the place"


@dataclass(frozen=True)
class RawRow:
    """A row as parsed: `value` is None if `issue` says why it could not be."""

    number: int  # index in the file, from 0
    value: Any
    line: int | None = None  # line in a text file, from 1
    issue: Issue | None = None


class FileFault(RowError):
    """A file cannot be read, from some place on."""

    def __init__(self, file: Path, problem: str, fix: str, *, kind: str = "unreadable file", line: int | None = None):
        self.fault = Fault(str(file), None, line, "", "", kind, problem, fix)
        super().__init__(str(self.fault))


def list_data_files(path: str | Path, endings: tuple[str, ...]) -> list[Path]:
    """Returns the file `path`, or the files of a folder with one of `endings`, by name.

    Raises:
        FileNotFoundError: there is none.
        RowError: the file has another ending, or two files have the same stem, from which the ids of rows are made.
    """
    path = Path(path)
    found = sorted(file for file in path.iterdir() if file.suffix in endings) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"no {', '.join(endings)} file at {path}")
    for file in found:
        if file.suffix not in endings:
            raise FileFault(file, f"the ending {file.suffix!r} is none of {', '.join(endings)}", "rename or convert it")
    stems: dict[str, Path] = {}
    for file in found:
        if file.stem in stems:
            raise FileFault(
                file, f"{stems[file.stem].name} has the same name, so that ids of rows would repeat", "rename one"
            )
        stems[file.stem] = file
    return found


def iter_raw_rows(file: Path) -> Iterator[RawRow]:
    """Yields every row of a file.

    Raises:
        FileFault: the file cannot be read, or not further.
        ImportError: a parquet file without pyarrow.
    """
    reader = {".parquet": _parquet_rows, ".json": _json_rows, ".csv": _csv_rows}.get(file.suffix, _jsonl_rows)
    try:
        yield from reader(file)
    except OSError as error:
        raise FileFault(file, clip_text(error.strerror or str(error)), "check the path and its permissions") from error


def _parquet_rows(file: Path) -> Iterator[RawRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{file} is a parquet file: `pip install pyarrow`, or convert it to .jsonl") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for value in batch.to_pylist():
                    yield RawRow(number, value)
                    number += 1
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"no parquet file, or cut off, after {number:,} rows ({file.stat().st_size:,} bytes)"
        raise FileFault(
            file, f"{problem}: {clip_text(str(error))}", "copy or download it again and compare its size"
        ) from error


def _jsonl_rows(file: Path) -> Iterator[RawRow]:
    with file.open("rb") as lines:
        offset, number = 0, 0
        for position, data in enumerate(lines, start=1):
            start, offset = offset, offset + len(data)
            if position == 1:
                data, start = _without_bom(file, data, start)
                if data.lstrip()[:1] == b"[":
                    raise FileFault(file, "holds a JSON list, not one object per line", "name it .json")
            if not data.strip():
                continue
            value, issue = _parse_line(data, start)
            yield RawRow(number, value, position, issue)
            number += 1


def _without_bom(file: Path, data: bytes, start: int) -> tuple[bytes, int]:
    """Returns the first bytes of a file without the UTF-8 byte order mark, and their offset."""
    if data.startswith(_UTF16_BOMS):
        raise FileFault(
            file, "is UTF-16 (byte order mark at byte 0)", _TO_UTF8.replace("GBK", "UTF-16"), kind="encoding"
        )
    if data.startswith(codecs.BOM_UTF8):
        return data[3:], start + 3
    return data, start


def _parse_line(data: bytes, start: int) -> tuple[Any, Issue | None]:
    try:
        return json.loads(data.decode("utf-8")), None
    except UnicodeDecodeError as error:
        return None, Issue("encoding", "", f"byte {start + error.start:,} of the file is not UTF-8", _TO_UTF8)
    except RecursionError:
        return None, Issue("not JSON", "", "is nested too deeply", "flatten the row")
    except ValueError as error:
        return None, Issue("not JSON", "", f"is not JSON: {clip_text(str(error))}", _NOT_JSON)


def _csv_rows(file: Path) -> Iterator[RawRow]:
    """Yields the rows of a CSV file as mappings from the names in its first line to texts."""
    csv.field_size_limit(_MAX_ROW_CHARS)  # of the process; images in base64 exceed the default of 128 kB
    with file.open("rb") as start:
        _without_bom(file, start.read(4), 0)  # raises for UTF-16
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            if not any(names):
                raise FileFault(file, "has no first line with the names of the columns", "add it")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise FileFault(file, f"has two columns with the name {clip(twice[0])}", "rename one", line=1)
            number = 0
            for cells in reader:
                if not cells:
                    continue
                issue = None
                if len(cells) != len(names):
                    fix = "quote cells that contain commas, quotes or line breaks"
                    issue = Issue("not CSV", "", f"has {len(cells)} cells for {len(names)} columns", fix)
                yield RawRow(number, None if issue else dict(zip(names, cells, strict=True)), reader.line_num, issue)
                number += 1
        except UnicodeDecodeError as error:
            raise FileFault(
                file, f"is not UTF-8 after line {reader.line_num:,}", _TO_UTF8, kind="encoding", line=reader.line_num
            ) from error
        except csv.Error as error:
            fix = "quote cells that contain commas, quotes or line breaks"
            raise FileFault(file, f"is not CSV: {clip_text(str(error))}", fix, line=reader.line_num) from error


class _JsonText:
    """A growing window of the characters of a JSON file."""

    def __init__(self, file: Path):
        self.file, self.text, self.index, self.at_end = file, "", 0, False
        self._mark, self._mark_lines = 0, 0  # an index, and the line breaks of the file before it
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._stream = file.open("rb")
        self._bytes = 0
        self._is_first = True

    def close(self) -> None:
        self._stream.close()

    def read_more(self) -> None:
        """Discards the text before `index` and appends at least as much as is held."""
        self._move_mark(self.index)
        self.text, self.index, self._mark = self.text[self.index :], 0, 0
        if len(self.text) > _MAX_ROW_CHARS:
            self.fail(f"a row is longer than {_MAX_ROW_CHARS:,} characters", "give images as paths")
        data = self._stream.read(max(_CHUNK_BYTES, len(self.text)))
        if self._is_first:
            data, self._bytes = _without_bom(self.file, data, 0)
            self._is_first = False
        self.at_end = not data
        waiting = len(self._decoder.getstate()[0])
        try:
            self.text += self._decoder.decode(data, final=self.at_end)
        except UnicodeDecodeError as error:
            offset = self._bytes - waiting + error.start
            raise FileFault(self.file, f"byte {offset:,} is not UTF-8", _TO_UTF8, kind="encoding") from error
        self._bytes += len(data)

    def line(self) -> int:
        """Returns the line of `index`, from 1."""
        self._move_mark(self.index)
        return 1 + self._mark_lines

    def _move_mark(self, index: int) -> None:
        self._mark_lines += self.text.count("\n", self._mark, index)
        self._mark = index

    def fail(self, problem: str, fix: str, index: int | None = None) -> None:
        """Raises FileFault for the character at `index`, by default the current one."""
        self.index = self.index if index is None else index
        raise FileFault(self.file, problem, fix, kind="not JSON", line=self.line())

    def peek(self) -> str:
        """Skips white space; returns the next character, empty at the end of the file."""
        while True:
            while self.index < len(self.text) and self.text[self.index] in " \t\r\n":
                self.index += 1
            if self.index < len(self.text) or self.at_end:
                return self.text[self.index : self.index + 1]
            self.read_more()

    def value(self) -> Any:
        """Parses the value at `index`, reading on while it is incomplete."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.index)
                if end < len(self.text) or self.at_end:  # else a number may continue
                    self.index = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if self.at_end or not cut:
                    self.fail(f"is not JSON: {clip_text(error.msg)}", _NOT_JSON, error.pos)
            except (ValueError, RecursionError) as error:
                self.fail(f"is not JSON: {clip_text(str(error))}", _NOT_JSON)
            self.read_more()


def _json_rows(file: Path) -> Iterator[RawRow]:
    text = _JsonText(file)
    try:
        _open_list(text)
        number = 0
        while text.peek() != "]":
            line = text.line()
            yield RawRow(number, text.value(), line)
            number += 1
            following = text.peek()
            if following == ",":
                text.index += 1
                if text.peek() == "]":
                    text.fail(f"a comma after the last row, {number - 1}", "remove the comma before the closing ]")
            elif following != "]":
                what = f"{clip(following)} where , or ] must follow" if following else "the file ends inside the list"
                text.fail(f"{what}, after row {number - 1}", "the file is cut off or not JSON: write it again")
        text.index += 1
        if text.peek():
            text.fail("there is more text after the closing ]", "write one JSON list, or one object per line as .jsonl")
    finally:
        text.close()


def _open_list(text: _JsonText) -> None:
    first = text.peek()
    if first == "{":
        text.fail(
            "holds an object, not a list of rows", "write [row, row, ...], or name it .jsonl if it has one per line"
        )
    if first != "[":
        found = f"starts with {clip(first)}" if first else "is empty"
        text.fail(f"{found}, not a list of rows", "write [row, row, ...]")
    text.index += 1
