"""Reads files in the released formats: RL rows as questions, SFT conversations as messages.

Both are read lazily, one row at a time, because released files hold gigabytes of images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dv2_jax.data.faults import Fault, Issue, RowError, clip
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import Conversation, RowReader, parse_conversation, parse_question
from dv2_jax.data.row_files import (
    CONVERSATION_ENDINGS,
    QUESTION_ENDINGS,
    RawRow,
    iter_raw_rows,
    list_data_files,
)

__all__ = ["Conversation", "RowError", "read_conversations", "read_questions"]

RecordT = TypeVar("RecordT")
RowKey = tuple[str, int]  # (path of the file, index of the row in it)


class ParseRow(Protocol[RecordT]):
    """Converts the fields of a row; returns None if the reader has collected issues."""

    def __call__(self, row: Any, id_: str, reader: RowReader) -> RecordT | None: ...


@dataclass(frozen=True)
class ParsedRow(Generic[RecordT]):
    """A row with its record, or without one and with issues."""

    record: RecordT | None
    issues: tuple[Issue, ...]
    own_id: str  # the row's own `id` field, empty without one
    image_paths: tuple[str, ...] = ()  # image files that the row names, as written

    def faults(self, file: Path, raw: RawRow) -> list[Fault]:
        return [make_fault(file, raw, self.own_id, issue) for issue in self.issues]


def read_questions(
    path: str | Path,
    *,
    skip: Collection[RowKey] = (),
    limit: int | None = None,
    on_fault: Callable[[Fault], None] | None = None,
) -> Iterator[Question]:
    """Reads the questions of a `.parquet`, `.jsonl` or `.json` file, or of every such file in a folder, by name.

    An image is `{"bytes": ...}` (base64 in JSON) or `{"image": path}` (relative to the file). `prompt` is kept
    unchanged as `Question.messages`.

    Args:
        skip: rows to leave out.
        limit: number of rows to read, skipped ones included; None: all.
        on_fault: called with every fault, whose row is then left out; None: a fault raises.

    Raises:
        RowError: a file cannot be read, or a row lacks a field or holds a wrong one.
        ImportError: a parquet file without pyarrow.
    """
    return _read(path, QUESTION_ENDINGS, parse_question, skip, limit, on_fault)


def read_conversations(
    path: str | Path,
    *,
    skip: Collection[RowKey] = (),
    limit: int | None = None,
    on_fault: Callable[[Fault], None] | None = None,
) -> Iterator[Conversation]:
    """Reads the conversations of a `.json` (one list) or `.jsonl` file, or of every such file in a folder, by name.

    Arguments and errors are those of `read_questions`.
    """
    return _read(path, CONVERSATION_ENDINGS, parse_conversation, skip, limit, on_fault)


def _read(
    path: str | Path,
    endings: tuple[str, ...],
    parse: ParseRow[RecordT],
    skip: Collection[RowKey],
    limit: int | None,
    on_fault: Callable[[Fault], None] | None,
) -> Iterator[RecordT]:
    for file, raw in iter_source(path, endings, limit):
        if (str(file), raw.number) in skip:
            continue
        parsed = parse_row(raw, file, parse)
        for fault in parsed.faults(file, raw):
            if on_fault is None:
                raise RowError(str(fault))
            on_fault(fault)
        if parsed.record is not None:
            yield parsed.record


def iter_source(path: str | Path, endings: tuple[str, ...], limit: int | None = None) -> Iterator[tuple[Path, RawRow]]:
    """Yields (file, row) of the first `limit` rows of a file or folder; without a limit, of all."""
    count = 0
    for file in list_data_files(path, endings):
        for raw in iter_raw_rows(file):
            if count == limit:
                return
            count += 1
            yield file, raw


def parse_row(raw: RawRow, file: Path, parse: ParseRow[RecordT]) -> ParsedRow[RecordT]:
    """Checks the fields of a row and converts it."""
    if raw.issue is not None:
        return ParsedRow(None, (raw.issue,), "")
    if not isinstance(raw.value, dict):
        problem = f"the row is {type(raw.value).__name__} ({clip(raw.value)}), not an object"
        return ParsedRow(None, (Issue("wrong type", "", problem, "write {field: value, ...}"),), "")
    own = raw.value.get("id")
    reader = RowReader(raw.value, file.parent)
    record = parse(raw.value, f"{file.stem}:{raw.number}", reader)
    own_id = str(own) if isinstance(own, (str, int)) else ""
    return ParsedRow(record, tuple(reader.issues), own_id, tuple(reader.image_paths))


def make_fault(file: Path, raw: RawRow, own_id: str, issue: Issue) -> Fault:
    """Returns an issue with its file and row."""
    return Fault(str(file), raw.number, raw.line, own_id, issue.field, issue.kind, issue.problem, issue.fix)
