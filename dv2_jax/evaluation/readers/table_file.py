"""Reads benchmarks in parquet, JSON or JSONL files: one pass that keeps the texts in memory and the images in a spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dv2_jax.config import ConfigError, DataConfig
from dv2_jax.data.faults import DataReport, Issue, clip
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.data.row_files import QUESTION_ENDINGS, FileFault, RawRow, iter_raw_rows
from dv2_jax.data.rows import make_fault
from dv2_jax.evaluation.readers.image_spool import ImageSpool
from dv2_jax.evaluation.readers.questions import LazyQuestions
from dv2_jax.evaluation.readers.usable_rows import apply_bad_rows

IMAGE_DIGEST = "image_digest"  # in `Question.meta`: SHA-256 of the first image
ParseRow = Callable[[Mapping[str, Any], int, RowReader], Question | None]


def read_table(
    files: Sequence[Path], required: Sequence[str], parse: ParseRow, data: DataConfig | None = None
) -> LazyQuestions:
    """Returns the questions of the files of one data set, with their texts in memory.

    Args:
        required: columns that the first row must have.
        parse: `parse(row, number, reader)` converts the fields of a row, of the given number among all rows; it returns
            None if it has added issues to the reader.
        data: what to do with rows that have faults; None: they are an error.

    Raises:
        ConfigError: a column is missing; the message lists those that the file has.
        RowError: a file cannot be read to its end, or a row cannot be used under `data.bad_rows`.
    """
    table = _Table(files, required, parse)
    apply_bad_rows(table.report, data or DataConfig())

    def make(i: int) -> Question:
        return replace(table.texts[i], images=tuple(map(table.spool.read, table.images[i])))

    return LazyQuestions([question.id for question in table.texts], make, table.texts)


class _Table:
    def __init__(self, files: Sequence[Path], required: Sequence[str], parse: ParseRow):
        self.report = DataReport(str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files")
        self.texts: list[Question] = []
        self.images: list[list[int]] = []
        self.spool = ImageSpool()
        self._first: dict[str, str] = {}  # id → file and row
        for file in files:
            if file.suffix not in QUESTION_ENDINGS:
                endings = ", ".join(QUESTION_ENDINGS)
                raise FileFault(file, f"the ending {file.suffix!r} is none of {endings}", "rename or convert it")
            for raw in iter_raw_rows(file):
                if raw.number == 0 and isinstance(raw.value, Mapping):
                    _check_columns(file, raw.value, required)
                self._add(file, raw, parse)
        if not self.report.rows:
            raise ConfigError(f"{self.report.path} holds no rows")

    def _add(self, file: Path, raw: RawRow, parse: ParseRow) -> None:
        number = self.report.rows
        self.report.rows += 1
        issues, own_id = [raw.issue] if raw.issue else [], ""
        if raw.issue is None and not isinstance(raw.value, Mapping):
            problem = f"the row is {type(raw.value).__name__} ({clip(raw.value)}), not an object"
            issues.append(Issue("wrong type", "", problem, "write {field: value, ...}"))
        if not issues:
            reader = RowReader(raw.value, file.parent)
            question = parse(raw.value, number, reader)
            issues += reader.issues
            if question is not None:
                own_id, here = question.id, f"{file.name} row {raw.number}"
                if self._first.setdefault(own_id, here) != here:
                    problem = f"{clip(own_id)} is that of {self._first[own_id]} too"
                    issues.append(Issue("repeated id", "id", problem, "give each row an id of its own"))
                elif not issues:
                    self._keep(file, question)
        self.report.faults += [make_fault(file, raw, own_id, issue) for issue in issues]

    def _keep(self, file: Path, question: Question) -> None:
        try:
            stored = [self.spool.add(image) for image in question.images]
        except OSError as error:
            problem = f"its images cannot be stored in a temporary file: {error.strerror or error}"
            raise FileFault(file, problem, "make room, or name another folder with $TMPDIR") from error
        digest = {IMAGE_DIGEST: stored[0][1]} if stored else {}
        self.texts.append(replace(question, images=(), meta={**question.meta, **digest}))
        self.images.append([number for number, _ in stored])


def _check_columns(file: Path, row: Mapping[str, Any], required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in row]:
        shown = ", ".join(clip(str(name), 40)[1:-1] for name in list(row)[:40])
        raise ConfigError(
            f"{file}: no column {', '.join(missing)}; it has the columns {shown}, and {', '.join(required)} are expected:"
            " it is another file, or another version of it"
        )
