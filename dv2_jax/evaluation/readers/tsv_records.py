"""Splits a TSV file into records and cells as pandas' parser does, one record in memory at a time.

A cell that starts with a quotation mark extends to the closing one and may contain tabs, line ends and doubled quotation
marks; quotation marks elsewhere are text. Records end with a line feed, a carriage return or both; blank lines are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dv2_jax.data.row_files import FileFault

MAX_RECORD_BYTES = 1 << 28  # longer ones are those of a quotation mark that is never closed
_BUFFER_BYTES = 1 << 20
_TAB, _FEED, _RETURN, _QUOTE = b"\t", b"\n", b"\r", b'"'

Span = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """One record, without its line end.

    Attributes:
        line: line of its first byte, from 1.
        start: offset of its first byte in the file.
        data: its bytes.
        spans: (start, end) of each cell in `data`, quotation marks included.
        has_line_end: False for a last record without one, as a file that is cut off has.
    """

    line: int
    start: int
    data: bytes
    spans: tuple[Span, ...]
    has_line_end: bool

    def cell(self, index: int) -> bytes:
        """Returns the content of a cell."""
        start, end = self.spans[index]
        return unquote(self.data[start:end])


def iter_records(path: Path) -> Iterator[Record]:
    """Yields every record of a file, the header included.

    Raises:
        FileFault: the file cannot be read, or a quotation mark is never closed.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as stream:
            yield from _records(path, stream)
    except FileFault:
        raise
    except OSError as error:
        raise FileFault(path, error.strerror or str(error), "check the path and its permissions") from error


def _records(path: Path, stream) -> Iterator[Record]:
    offset, line = 0, 1
    while data := stream.readline():
        if offset == 0 and data.startswith(b"\xef\xbb\xbf"):
            data, offset = data[3:], 3
        end = len(data) - (2 if data.endswith(b"\r\n") else data.endswith(_FEED))
        if _QUOTE not in data and data.find(_RETURN, 0, end) < 0:  # the usual record
            if data[:end].strip(b" "):
                yield Record(line, offset, data[:end], tuple(_plain_spans(data, end)), end < len(data))
            offset, line = offset + len(data), line + 1
            continue
        position = 0
        while position < len(data):  # a carriage return ends a record too, so that a line may hold several
            spans: list[Span] = []
            following = _scan(data, position, spans)
            while following is None:
                more = stream.readline()
                if not more or len(data) - position > MAX_RECORD_BYTES:
                    _unclosed(path, data, position, line)
                length = len(data)
                data += more
                following = _scan(data, position, spans, resume=length)
            end = spans[-1][1]
            if data[position:end].strip(b" "):
                shifted = tuple((a - position, b - position) for a, b in spans)
                yield Record(line, offset + position, bytes(data[position:end]), shifted, following > end)
            line += data.count(_FEED, position, following)
            position = following
        offset += len(data)


def _plain_spans(data: bytes, end: int) -> Iterator[Span]:
    start = 0
    while (tab := data.find(_TAB, start, end)) >= 0:
        yield start, tab
        start = tab + 1
    yield start, end


def _scan(data: bytes, position: int, spans: list[Span], resume: int = 0) -> int | None:
    """Appends the spans of the cells of the record at `position`; returns the position of the next record.

    Returns None if the data ends in a quoted cell; the next call has more data and `resume`, the length of the data before.
    """
    if spans:
        position = spans[-1][1] + 1
    feed = back = -2  # the next of each, searched again once passed, so that no byte is searched twice
    while True:
        start = position
        if data[start : start + 1] == _QUOTE:
            position = _closing_quote(data, max(start + 1, resume))
            if position < 0:
                return None
        tab = data.find(_TAB, position)
        feed = data.find(_FEED, position) if feed < position and feed != -1 else feed
        back = data.find(_RETURN, position) if back < position and back != -1 else back
        end = min((found for found in (tab, feed, back) if found >= 0), default=len(data))
        spans.append((start, end))
        if end != tab:
            return min(len(data), end + (2 if data[end : end + 2] == b"\r\n" else 1))
        position = tab + 1


def _closing_quote(data: bytes, position: int) -> int:
    """Returns the position after the closing quotation mark of a cell, or -1."""
    while (quote := data.find(_QUOTE, position)) >= 0:
        position = quote + 1
        if data[position : position + 1] != _QUOTE:
            return position
        position += 1
    return -1


def _unclosed(path: Path, data: bytes, position: int, line: int) -> None:
    problem = f'a cell of the row that starts here opens with a quotation mark (") that {len(data) - position:,} bytes'
    fix = 'the file is cut off: download it again; or double the quotation marks in cells that start with one ("")'
    raise FileFault(path, f"{problem} later is not closed", fix, kind="cut off", line=line)


def unquote(raw: bytes) -> bytes:
    """Returns the content of a raw cell."""
    if not raw.startswith(_QUOTE):
        return raw
    end = _closing_quote(raw, 1)
    return raw[1 : end - 1].replace(b'""', _QUOTE) + raw[end:]


def split_record(data: bytes) -> list[bytes]:
    """Returns the cells of one complete record."""
    if _QUOTE not in data:
        return data.split(_TAB)
    spans: list[Span] = []
    _scan(data, 0, spans)
    return [unquote(data[start:end]) for start, end in spans]
