"""Reads VLMEvalKit's TSV files, of which some hold gigabytes of images: one pass finds the rows, then any row can be read.

Memory holds four offsets and the id of each row, never an image or a text. An image cell is base64, a list literal of
base64, the `index` of the row whose image is shared (at most 64 characters), or empty; `image_path` names files instead.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.config import ConfigError, DataConfig
from dv2_jax.data.faults import DataReport, Issue, RowError, clip
from dv2_jax.data.row_files import RawRow
from dv2_jax.data.rows import make_fault
from dv2_jax.evaluation.readers import image_cells
from dv2_jax.evaluation.readers.pandas_columns import MISSING, Column
from dv2_jax.evaluation.readers.tsv_records import Record, iter_records, split_record, unquote
from dv2_jax.evaluation.readers.usable_rows import apply_bad_rows

INDEX, IMAGE, IMAGE_PATH = "index", "image", "image_path"


class TsvFile:
    """The rows of a TSV file, without those that `data.bad_rows` leaves out. Methods are safe in threads.

    Attributes:
        path: the file.
        columns: names of the columns, in order.
        ids: the `index` of each row, as text.
        has_integer_index: every `index` is an integer, and so VLMEvalKit uses it as one.
        report: rows and faults.
    """

    def __init__(self, path: str | Path, required: Sequence[str] = (), data: DataConfig | None = None):
        """Reads the file once.

        Args:
            required: columns that the file must have, in addition to `index`.
            data: what to do with rows that have faults; None: they are an error.

        Raises:
            ConfigError: a column is missing; the message lists those that the file has.
            RowError: the file cannot be read to its end, or a row cannot be used under `data.bad_rows`.
        """
        self.path = Path(path)
        index = _Index(self.path, (INDEX, *required))
        apply_bad_rows(index.report, data or DataConfig())
        rows = [row for row in range(len(index.ids)) if row not in index.bad]
        self.columns, self.report, self._types = index.columns, index.report, index.types
        raw = [index.ids[row] for row in rows]
        self.ids = tuple(index.types[index.columns.index(INDEX)].format(id_) for id_ in raw)
        self.has_integer_index = all(_is_integer(id_) for id_ in self.ids)
        self._offsets = array("Q")  # four per row: start, start of the image cell, its end, end
        for row in rows:
            self._offsets.extend(index.offsets[4 * row : 4 * row + 4])
        position = {row: i for i, row in enumerate(rows)}
        self._image_rows = array("Q", (position[index.image_row(row)] for row in rows))
        self._positions = {id_: i for i, id_ in enumerate(self.ids)}
        self._image_column = index.image_column
        self._file = self.path.open("rb")
        self._kept: tuple[int, tuple[bytes, ...]] | None = None  # the images read last: rows in turn share them
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, i: int) -> str | int:
        """Returns the `index` of row i as VLMEvalKit has it: an integer only if all are."""
        return int(self.ids[i]) if self.has_integer_index else self.ids[i]

    def position(self, id_: str) -> int:
        """Returns the row with that `index`. Raises KeyError."""
        return self._positions[id_]

    def image_id(self, i: int) -> str:
        """Returns the id of the row whose image cell row i uses: equal for rows that share an image."""
        return self.ids[self._image_rows[i]]

    def row(self, i: int) -> dict[str, str]:
        """Returns all columns of row i but `image`, as the text of pandas' values; a missing value is empty."""
        start, image, image_end, end = self._row_offsets(i)
        data = self._read(start, image) + self._read(image_end, end)
        cells = split_record(data)
        values = zip(self.columns, self._types, cells, strict=True)
        return {name: type_.format(cell.decode("utf-8")) for name, type_, cell in values if name != IMAGE}

    def images(self, i: int) -> tuple[bytes, ...]:
        """Returns the encoded images of row i, from its own cell, a shared one, or the files it names.

        Raises:
            RowError: an image cannot be read, as after the file has been changed.
        """
        source = self._image_rows[i]
        with self._lock:
            if self._kept is not None and self._kept[0] == source:
                return self._kept[1]
        images = self._images(source)
        with self._lock:
            self._kept = source, images
        return images

    def _images(self, i: int) -> tuple[bytes, ...]:
        try:
            cell = b""
            if self._image_column is not None:
                _, start, end, _ = self._row_offsets(i)
                cell = unquote(self._read(start, end))
            if not image_cells.is_missing(cell):
                return image_cells.decode_images(cell)
            if IMAGE_PATH not in self.columns:
                return ()
            names = image_cells.path_list(self.row(i)[IMAGE_PATH])
            found = [image_cells.find_image_file(name, self.path) for name in names]
            missing = [name for name, path in zip(names, found, strict=True) if path is None]
            if missing:
                raise ValueError(f"there is no file {missing[0]}")
            return tuple(image_cells.read_image_file(path) for path in found if path is not None)
        except ValueError as error:
            raise RowError(
                f"{self.path} row with index {self.ids[i]}, image: {error}. Fix: as before the run"
            ) from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _row_offsets(self, i: int) -> tuple[int, int, int, int]:
        start, image, image_end, end = self._offsets[4 * i : 4 * i + 4]
        return start, image, image_end, end

    def _read(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - start, start)


class _Index:
    """The result of the pass over a file: offsets, ids, types of the columns, and faults."""

    def __init__(self, path: Path, required: Sequence[str]):
        self.path, self.report = path, DataReport(str(path))
        self.columns: tuple[str, ...] = ()
        self.types: list[Column] = []
        self.image_column: int | None = None
        self.ids: list[str] = []
        self.offsets = array("Q")
        self.lines = array("Q")
        self.bad: set[int] = set()
        self._rows: dict[str, int] = {}  # id → row
        self._references: dict[int, str] = {}  # row → id of the row whose image it shares
        for record in iter_records(path):
            if not self.columns:
                self._read_header(record, required)
            else:
                self._add(record)
        if not self.columns:
            raise ConfigError(f"{path} is empty: a TSV file starts with the names of its columns")
        if not self.ids:
            raise ConfigError(f"{path} has the columns {', '.join(self.columns)} but no rows")
        self._resolve_references()
        self.report.faults.sort(key=lambda fault: fault.row or 0)

    def image_row(self, row: int) -> int:
        """Returns the row whose image cell a row uses: its own, or that at the end of its references."""
        seen = {row}
        while row in self._references:
            row = self._target(self._references[row])
            if row in seen or row < 0:
                return -1
            seen.add(row)
        return row

    def _target(self, id_: str) -> int:
        if id_ not in self._rows and _is_integer(id_):
            id_ = str(int(id_))
        return self._rows.get(id_, -1)

    def _read_header(self, record: Record, required: Sequence[str]) -> None:
        names: list[str] = []
        for number in range(len(record.spans)):
            name = record.cell(number).decode("utf-8", "replace") or f"Unnamed: {number}"
            repeated = names.count(name)
            names.append(f"{name}.{repeated}" if repeated else name)
        self.columns = tuple(names)
        if missing := [name for name in required if name not in names]:
            shown = ", ".join(clip(name)[1:-1] for name in names[:40])
            raise ConfigError(
                f"{self.path}: no column {', '.join(missing)}; it has the columns {shown}, and"
                f" {', '.join(required)} are expected: it is another file, or another version of it"
            )
        self.types = [Column() for _ in names]
        self.image_column = names.index(IMAGE) if IMAGE in names else None

    def _add(self, record: Record) -> None:
        row = len(self.ids)
        self.report.rows += 1
        self.lines.append(record.line)
        end = record.start + len(record.data)
        if len(record.spans) != len(self.columns):
            self.ids.append("")
            self.offsets.extend((record.start, end, end, end))
            self._fault(row, self._width_issue(record))
            return
        image_start, image_end = len(record.data), len(record.data)
        if self.image_column is not None:
            image_start, image_end = record.spans[self.image_column]
        self.offsets.extend((record.start, record.start + image_start, record.start + image_end, end))
        texts, issues = self._texts(record)
        self.ids.append(id_ := texts[self.columns.index(INDEX)].strip())
        first = self._rows.setdefault(id_, row)
        if id_ in MISSING:
            issues.append(Issue("missing field", INDEX, "is empty", "give each row an index of its own"))
        elif first != row:
            problem = f"{clip(id_)} is that of row {first} (line {self.lines[first]}) too"
            issues.append(Issue("repeated index", INDEX, problem, "give each row an index of its own"))
        if self.image_column is not None:
            self._add_image(row, record.cell(self.image_column), texts, issues)
        elif issue := self._path_issue(texts):
            issues.append(issue)
        for issue in issues:
            self._fault(row, issue)

    def _texts(self, record: Record) -> tuple[list[str], list[Issue]]:
        """Returns the text of each cell, empty for `image`, and the problems of decoding them."""
        texts, issues = [], []
        for number, (name, type_) in enumerate(zip(self.columns, self.types, strict=True)):
            if number == self.image_column:
                texts.append("")
                continue
            cell = record.cell(number)
            try:
                texts.append(cell.decode("utf-8"))
            except UnicodeDecodeError as error:
                problem = f"byte {error.start:,} of the cell is not UTF-8"
                fix = "convert the file, e.g. `iconv -f GBK -t UTF-8 OLD > NEW`"
                issues.append(Issue("encoding", name, problem, fix))
                texts.append(cell.decode("utf-8", "replace"))
            type_.add(texts[-1])
        return texts, issues

    def _add_image(self, row: int, cell: bytes, texts: Sequence[str], issues: list[Issue]) -> None:
        if image_cells.is_missing(cell):
            if issue := self._path_issue(texts):
                issues.append(issue)
        elif shared := image_cells.reference(cell):
            self._references[row] = shared
        elif issue := image_cells.image_cell_issue(cell):
            issues.append(issue)

    def _path_issue(self, texts: Sequence[str]) -> Issue | None:
        if IMAGE_PATH not in self.columns:
            return None
        text = texts[self.columns.index(IMAGE_PATH)]
        for name in image_cells.path_list("" if text in MISSING else text):
            if image_cells.find_image_file(name, self.path) is None:
                own = self.path.parent / "images" / self.path.stem.removesuffix("_local")
                problem = f"there is no file {clip(name, 200)}"
                return Issue("image", IMAGE_PATH, problem, f"copy the images to {own}, or correct the names")
        return None

    def _resolve_references(self) -> None:
        """Adds a fault for each row whose shared image does not exist, or is that of a row with faults."""
        for row, id_ in self._references.items():
            source = self.image_row(row)
            if source < 0:
                problem = f"{clip(id_)} is the index of no row that holds an image"
            elif source in self.bad:
                problem = f"the row {clip(id_)}, whose image it shares, has faults"
            elif self._is_empty(source):
                problem = f"the row {clip(id_)}, whose image it shares, has none"
            else:
                continue
            fix = "write the image as base64 (more than 64 characters), or the index of a row that does"
            self._fault(row, Issue("shared image", IMAGE, problem, fix))

    def _is_empty(self, row: int) -> bool:
        _, start, end, _ = self.offsets[4 * row : 4 * row + 4]
        return end - start <= image_cells.MAX_REFERENCE

    def _width_issue(self, record: Record) -> Issue:
        found = f"{len(record.spans)} cells, but the header names {len(self.columns)} columns"
        if not record.has_line_end and len(record.spans) < len(self.columns):
            fix = "the file is cut off: copy or download it again and compare its size"
            return Issue("cut off", "", f"the last row ends after {found}", fix)
        fix = 'write cells that contain a tab, a line end or a leading " in quotation marks'
        return Issue("number of cells", "", f"has {found}", fix)

    def _fault(self, row: int, issue: Issue) -> None:
        self.bad.add(row)
        raw = RawRow(row, None, self.lines[row])
        self.report.faults.append(make_fault(self.path, raw, self.ids[row], issue))


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
