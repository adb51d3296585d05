"""Rows of a curation: a question with its origin, stored once; stages add labels and never change a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dv2_jax.agent.trajectory import TurnRecord
from dv2_jax.config import ConfigError
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

    `conversation` and `turns` are those of a stored trajectory, see `SourceRow`.
    """

    question: Question
    source: str
    license: str
    form: RowForm = "question"
    conversation: tuple[dict[str, str], ...] | None = None
    turns: tuple[TurnRecord, ...] = ()

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
    """A part `index` of `count` of all rows. Rows are assigned by a digest of their id, so that sources mix evenly."""

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

    def has(self, row_id: str) -> bool:
        """Returns whether a row belongs to this shard."""
        digest = hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index


class RowStore:
    """The rows of a curation on disk: a line per row, and every image once. Memory holds an offset per row.

    Args:
        folder: of the curation; shared by all shards.
        shard: the part that is written; all complete shards are read.
    """

    def __init__(self, folder: Path, shard: Shard):
        self.folder, self.shard = folder, shard
        self._places: dict[str, tuple[Path, int, RowForm]] = {}
        self._own_path = folder / "rows" / f"{shard.name}.jsonl"
        for path in sorted((folder / "rows").glob(f"*-of-{shard.count:03d}.jsonl")):
            for offset, line in read_lines(path):
                self._places[line["id"]] = path, offset, line.get("form", "question")
        self._file = RecordFile(self._own_path)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._places

    def ids(self) -> list[str]:
        """Returns the ids of all rows, sorted, which does not depend on the number of shards."""
        return sorted(self._places)

    def own_ids(self) -> list[str]:
        """Returns the ids of this shard's rows, sorted."""
        return [row_id for row_id in self.ids() if self.shard.has(row_id)]

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
        self._places[row.id] = self._own_path, self._file.append(document), row.form

    def form(self, row_id: str) -> RowForm:
        """Returns what a row is, without reading it."""
        return self._places[row_id][2]

    def document(self, row_id: str) -> dict[str, Any]:
        """Returns the stored line of a row, without reading its images."""
        path, offset, _ = self._places[row_id]
        return read_line(path, offset)

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


class Journal:
    """The labels of one stage: a line per entry, keyed by `row` and, where there are several, `sample`.

    Of several lines with one key the newest counts, for which reason a failed entry can be repeated. Memory holds the place
    of every entry, not the entry.
    """

    def __init__(self, folder: Path, stage: str, shard: Shard):
        self.stage = stage
        self._places: dict[str, dict[int, tuple[int, int]]] = {}  # row → sample → number of the file, offset
        self._paths: list[Path] = []
        for path in sorted((folder / "journal").glob(f"{stage}-*-of-{shard.count:03d}.jsonl")):
            number = len(self._paths)
            self._paths.append(path)
            for offset, line in read_lines(path):
                self._places.setdefault(line["row"], {})[line.get("sample", 0)] = number, offset
        own = folder / "journal" / f"{stage}-{shard.name}.jsonl"
        if own not in self._paths:
            self._paths.append(own)
        self._own = self._paths.index(own)
        self._file = RecordFile(own)

    def add(self, row: str, labels: Mapping[str, Any], sample: int = 0) -> None:
        """Appends the labels of a row, or of one of its samples.

        Raises:
            RunFailure: the disk is full.
        """
        offset = self._file.append({"row": row, "sample": sample, **labels})
        self._places.setdefault(row, {})[sample] = self._own, offset

    def get(self, row: str, sample: int = 0) -> dict[str, Any] | None:
        """Returns the newest entry, or None."""
        place = self._places.get(row, {}).get(sample)
        return None if place is None else self._read(*place)

    def of_row(self, row: str, samples: int) -> list[dict[str, Any]]:
        """Returns the entries of the samples 0 to `samples` - 1 that exist."""
        places = self._places.get(row)
        if not places:
            return []
        return [self._read(*places[sample]) for sample in sorted(places) if sample < samples]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yields the newest entry of every row and sample."""
        for places in self._places.values():
            for place in places.values():
                yield self._read(*place)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, number: int, offset: int) -> dict[str, Any]:
        return read_line(self._paths[number], offset)


def store_image(folder: Path, data: bytes) -> str:
    """Stores an encoded image of a curation once and returns its file name."""
    name = image_file_name(data)
    path = folder / IMAGES / name
    if not path.exists():
        atomic_write(path, bytes(data))
    return name
