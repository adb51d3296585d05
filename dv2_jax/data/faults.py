"""Faults of data files: each names the file, the row, the field, the problem and the fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from dv2_jax.config import RunFailure

MAX_SHOWN = 80  # characters of a value in a message
TOO_LONG = "too long"  # the kind of a row that exceeds a limit of the configuration; such rows are left out
SHOWN_FAULTS = 10  # faults that a summary shows in full
SHOWN_LONG = 3  # rows that are too long and that it shows in addition


class RowError(RunFailure, ValueError):
    """A data file, or a row of it, cannot be used; the message names file, row, field, problem and fix."""


class Issue(NamedTuple):
    """One problem of a row, before its file and row are known."""

    kind: str  # a few words by which the report counts
    field: str
    problem: str
    fix: str


@dataclass(frozen=True)
class Fault:
    """One problem of a row, or of a file if `row` is None."""

    file: str
    row: int | None  # index of the row in the file, from 0
    line: int | None  # line in a text file, from 1
    id: str
    field: str
    kind: str
    problem: str
    fix: str

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        line = "" if self.line is None else f" (line {self.line})" if row else f" line {self.line}"
        named = f", id {clip(self.id)}" if self.id else ""
        at = f", {self.field}" if self.field else ""
        return f"{self.file}{row}{line}{named}{at}: {self.problem}. Fix: {self.fix}"


@dataclass
class DataReport:
    """The result of checking a data file or folder.

    Rows that are too long are no faults: they are left out under every policy for bad rows, and counted.
    """

    path: str
    rows: int = 0
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0
    cached: bool = False  # the result of an earlier check of the same content
    images_sha256: str = ""  # of the image files that usable rows name, in order; empty if they name none

    @property
    def file_faults(self) -> list[Fault]:
        """The faults of files; how many rows are lost to them is not known."""
        return [fault for fault in self.faults if fault.row is None]

    @property
    def bad_rows(self) -> frozenset[tuple[str, int]]:
        """(file, row) of every row with a fault."""
        return frozenset((f.file, f.row) for f in self.faults if f.row is not None and f.kind != TOO_LONG)

    @property
    def long_rows(self) -> frozenset[tuple[str, int]]:
        """(file, row) of every row whose only problem is its length."""
        return frozenset((f.file, f.row) for f in self.faults if f.kind == TOO_LONG) - self.bad_rows

    @property
    def usable(self) -> int:
        """The number of rows without a problem."""
        return self.rows - len(self.bad_rows) - len(self.long_rows)

    @property
    def is_clean(self) -> bool:
        """True if there are rows to use and no faults."""
        return self.usable > 0 and not self.file_faults and not self.bad_rows

    def summary(self, shown: int = SHOWN_FAULTS) -> str:
        """Returns counts per kind of fault and the first `shown` faults in full."""
        parts = [f"{self.rows:,} rows, {self.usable:,} usable"]
        if self.bad_rows:
            parts.append(f"{len(self.bad_rows):,} with faults")
        if self.long_rows:
            parts.append(f"{len(self.long_rows):,} too long")
        lines = [f"{self.path}: {', '.join(parts)}"]
        counts = Counter(fault.kind for fault in self.faults)
        lines += [f"  {count:>7,} × {kind}" for kind, count in counts.most_common()]
        first = [fault for fault in self.faults if fault.kind != TOO_LONG][:shown]
        first += [fault for fault in self.faults if fault.kind == TOO_LONG][: min(SHOWN_LONG, shown)]
        lines += [f"  {fault}" for fault in first]
        if len(self.faults) > len(first):
            lines.append(f"  ... and {len(self.faults) - len(first):,} more")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON document; `from_dict` reads it back."""
        faults = [asdict(fault) for fault in self.faults]
        return {"path": self.path, "rows": self.rows, "faults": faults, "images_sha256": self.images_sha256}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> DataReport:
        faults = [Fault(**fault) for fault in document["faults"]]
        return cls(document["path"], document["rows"], faults, images_sha256=document["images_sha256"])


def clip(value: Any, length: int = MAX_SHOWN) -> str:
    """Returns `repr(value)` on one line, shortened to about `length` characters, so that no message holds a file."""
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, str):
        text = repr(value[: length + 1])
        return text if len(value) <= length else f"{repr(value[:length])}... ({len(value):,} characters)"
    if isinstance(value, (Mapping, Sequence)):
        return f"a {type(value).__name__} of {len(value):,} entries"
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def clip_text(text: str, length: int = 300) -> str:
    """Returns an error's text on one line of at most about `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"
