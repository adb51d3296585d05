"""Rows of a curation: a question with its origin, stored once; stages add labels and never change a row."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dv2_jax.agent.trajectory import TurnRecord
from dv2_jax.config import ConfigError
from dv2_jax.curation.temporary_database import key_text, open_temporary_database, text_key
from dv2_jax.curation.trajectory_text import turns_from_json, turns_to_json
from dv2_jax.data.images import ImageFile
from dv2_jax.data.question import Question
from dv2_jax.evaluation.record_files import RecordFile, read_line, read_lines
from dv2_jax.files import atomic_write
from dv2_jax.telemetry.trajectories import image_file_name

IMAGES = "images"

# What a row is, which decides on the stages that label it: a question that tools may help to answer, a question for a long
# chain of thought without tools, or a stored trajectory of a released cold-start set.
RowForm = Literal["question", "long_cot", "trajectory"]


@dataclass(frozen=True)
class CurationRow:
    """A question with the name and the license of its source; `question.id` is unique in the curation.

    `conversation` and `turns` are those of a stored trajectory, see `SourceRow`. `position` is the row's place in its source.
    """

    question: Question
    source: str
    license: str
    form: RowForm = "question"
    conversation: tuple[dict[str, str], ...] | None = None
    turns: tuple[TurnRecord, ...] = ()
    position: str = ""

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def digest(self) -> str:
        """SHA-256 of text, reference and images: equal for equal rows of different sources."""
        return question_digest(self.question)


def question_digest(question: Question) -> str:
    """Returns the SHA-256 of a question's text, reference answer and images, as hexadecimal text."""
    images = [hashlib.sha256(image).hexdigest() for image in question.images]
    content = json.dumps([question.text, question.answer, images], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class Shard:
    """A part `index` of `count` of all rows.

    Rows are assigned by a digest of their position in the source, which is known before a row is parsed, so that a shard
    spends no time on the rows of others, and so that sources mix evenly.
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses `INDEX/COUNT`, from `0/COUNT` on.

        Raises:
            ConfigError: another form, or an index that is not below the count.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ConfigError(f"curate.shard = {text!r}: write INDEX/COUNT, such as 0/4 for the first of four")
        return cls(int(index), int(count))

    @property
    def name(self) -> str:
        """The suffix of the shard's files."""
        return f"{self.index:03d}-of-{self.count:03d}"

    def has(self, position: str) -> bool:
        """Returns whether the row at a position belongs to this shard."""
        digest = hashlib.sha256(position.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index


class RowStore:
    """The rows of a curation on disk: a line per row, and every image once. Memory does not grow with the rows.

    Args:
        folder: of the curation; shared by all shards.
        shard: the part that is written; all complete shards are read.
    """

    def __init__(self, folder: Path, shard: Shard):
        self.folder, self.shard = folder, shard
        self._places = open_temporary_database(
            "CREATE TABLE rows (id BLOB PRIMARY KEY, file INTEGER, place INTEGER, form TEXT) WITHOUT ROWID"
        )
        self._paths, self._own = _files_of_shards(folder / "rows", "", shard)
        for number, offset, line in _stored_lines(self._paths):
            self._insert(line["id"], number, offset, line.get("form", "question"))
        self._file = RecordFile(self._paths[self._own])

    def __len__(self) -> int:
        return self._places.execute("SELECT COUNT(*) FROM rows").fetchone()[0]

    def __contains__(self, row_id: str) -> bool:
        return self._place(row_id) is not None

    def ids(self) -> list[str]:
        """Returns the ids of all rows, sorted, which does not depend on the number of shards."""
        return [key_text(key) for (key,) in self._places.execute("SELECT id FROM rows ORDER BY id")]

    def own_ids(self) -> list[str]:
        """Returns the ids of this shard's rows, sorted."""
        rows = self._places.execute("SELECT id FROM rows WHERE file = ? ORDER BY id", (self._own,))
        return [key_text(key) for (key,) in rows]

    def _place(self, row_id: str) -> tuple[int, int, RowForm] | None:
        """Returns (number of the file, offset, form)."""
        query = "SELECT file, place, form FROM rows WHERE id = ?"
        return self._places.execute(query, (text_key(row_id),)).fetchone()

    def _known_place(self, row_id: str) -> tuple[int, int, RowForm]:
        place = self._place(row_id)
        if place is None:
            raise KeyError(row_id)
        return place

    def add(self, row: CurationRow) -> None:
        """Stores a row of this shard.

        Raises:
            RunFailure: the disk is full.
        """
        question = row.question
        document = {
            "id": row.id,
            "form": row.form,
            "source": row.source,
            "license": row.license,
            "digest": row.digest,
            "position": row.position,
            "skill": question.skill,
            "data_source": question.data_source,
            "text": question.text,
            "answer": question.answer,
            "verifier": question.verifier,
            "messages": None if question.messages is None else list(question.messages),
            "meta": question.meta,
            "images": [store_image(self.folder, data) for data in question.images],
            "conversation": None if row.conversation is None else list(row.conversation),
            "turns": turns_to_json(row.turns, lambda data: store_image(self.folder, data)),
        }
        self._insert(row.id, self._own, self._file.append(document), row.form)

    def _insert(self, row_id: str, number: int, offset: int, form: RowForm) -> None:
        try:
            self._places.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (text_key(row_id), number, offset, form))
        except sqlite3.IntegrityError as error:
            raise ConfigError(f"curate.sources: two rows have the id {row_id!r}, in {self.folder / 'rows'}") from error

    def form(self, row_id: str) -> RowForm:
        """Returns what a row is, without reading it."""
        return self._known_place(row_id)[2]

    def document(self, row_id: str) -> dict[str, Any]:
        """Returns the stored line of a row, without reading its images."""
        number, offset, _ = self._known_place(row_id)
        return read_line(self._paths[number], offset)

    def row(self, row_id: str) -> CurationRow:
        """Reads a row with its images."""
        line = self.document(row_id)
        question = Question(
            id=line["id"],
            skill=line["skill"],
            data_source=line["data_source"],
            text=line["text"],
            images=tuple(ImageFile.read(self.folder / IMAGES / name) for name in line["images"]),
            answer=line["answer"],
            verifier=line["verifier"],
            messages=None if line["messages"] is None else tuple(line["messages"]),
            meta=line["meta"],
        )
        conversation = None if line.get("conversation") is None else tuple(line["conversation"])
        turns = turns_from_json(line.get("turns", ()), lambda name: ImageFile.read(self.folder / IMAGES / name))
        return CurationRow(question, line["source"], line["license"], self.form(row_id), conversation, turns)

    def rows(self, ids: Iterable[str]) -> Iterator[CurationRow]:
        """Reads rows one at a time."""
        return (self.row(row_id) for row_id in ids)

    def close(self) -> None:
        self._file.close()
        self._places.close()


class Journal:
    """The labels of one stage: a line per entry, keyed by `row` and, where there are several, `sample`.

    Of several lines with one key the newest counts, for which reason a failed entry can be repeated. The places of entries
    are in a temporary database, so that memory does not grow with them.
    """

    def __init__(self, folder: Path, stage: str, shard: Shard):
        self.stage = stage
        self._places = open_temporary_database(
            "CREATE TABLE entries (row BLOB, sample INTEGER, file INTEGER, place INTEGER, PRIMARY KEY (row, sample))"
            " WITHOUT ROWID"
        )
        self._paths, self._own = _files_of_shards(folder / "journal", f"{stage}-", shard)
        for number, offset, line in _stored_lines(self._paths):
            self._insert(line["row"], line.get("sample", 0), number, offset)
        self._file = RecordFile(self._paths[self._own])

    def add(self, row: str, labels: Mapping[str, Any], sample: int = 0) -> None:
        """Appends the labels of a row, or of one of its samples.

        Raises:
            RunFailure: the disk is full.
        """
        offset = self._file.append({"row": row, "sample": sample, **labels})
        self._insert(row, sample, self._own, offset)

    def _insert(self, row: str, sample: int, number: int, offset: int) -> None:
        place = text_key(row), sample, number, offset
        self._places.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", place)

    def get(self, row: str, sample: int = 0) -> dict[str, Any] | None:
        """Returns the newest entry, or None."""
        query = "SELECT file, place FROM entries WHERE row = ? AND sample = ?"
        place = self._places.execute(query, (text_key(row), sample)).fetchone()
        return None if place is None else self._read(*place)

    def of_row(self, row: str, samples: int) -> list[dict[str, Any]]:
        """Returns the entries of the samples 0 to `samples` - 1 that exist."""
        query = "SELECT file, place FROM entries WHERE row = ? AND sample < ? ORDER BY sample"
        return [self._read(*place) for place in self._places.execute(query, (text_key(row), samples)).fetchall()]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yields the newest entry of every row and sample."""
        for place in self._places.execute("SELECT file, place FROM entries"):
            yield self._read(*place)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._places.close()

    def _read(self, number: int, offset: int) -> dict[str, Any]:
        return read_line(self._paths[number], offset)


def _files_of_shards(folder: Path, prefix: str, shard: Shard) -> tuple[list[Path], int]:
    """Returns the existing files of all shards and this shard's own, and the index of its own among them."""
    own = folder / f"{prefix}{shard.name}.jsonl"
    paths = sorted({own, *folder.glob(f"{prefix}*-of-{shard.count:03d}.jsonl")})
    return paths, paths.index(own)


def _stored_lines(paths: Iterable[Path]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields (index of the file, offset, document) of every complete line of the files that exist."""
    for number, path in enumerate(paths):
        if path.exists():
            yield from ((number, offset, line) for offset, line in read_lines(path))


def store_image(folder: Path, data: bytes) -> str:
    """Stores an encoded image of a curation once and returns its file name."""
    name = image_file_name(data)
    path = folder / IMAGES / name
    if not path.exists():
        atomic_write(path, bytes(data))
    return name
