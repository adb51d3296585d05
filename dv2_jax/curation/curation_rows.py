"""Rows of a curation: a question with its origin, stored once; stages add labels and never change a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.config import ConfigError
from dv2_jax.data.images import ImageFile
from dv2_jax.data.question import Question
from dv2_jax.evaluation.record_files import RecordFile, read_line, read_lines
from dv2_jax.files import atomic_write
from dv2_jax.telemetry.trajectories import image_file_name

IMAGES = "images"


@dataclass(frozen=True)
class CurationRow:
    """A question with the name and the license of its source; `question.id` is unique in the curation."""

    question: Question
    source: str
    license: str

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
        self._places: dict[str, tuple[Path, int]] = {}
        self._own_path = folder / "rows" / f"{shard.name}.jsonl"
        for path in sorted((folder / "rows").glob(f"*-of-{shard.count:03d}.jsonl")):
            for offset, line in read_lines(path):
                self._places[line["id"]] = path, offset
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
        names = []
        for data in question.images:
            names.append(image_file_name(data))
            path = self.folder / IMAGES / names[-1]
            if not path.exists():
                atomic_write(path, bytes(data))
        document = {
            "id": row.id,
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
            "images": names,
        }
        self._places[row.id] = self._own_path, self._file.append(document)

    def document(self, row_id: str) -> dict[str, Any]:
        """Returns the stored line of a row, without reading its images."""
        path, offset = self._places[row_id]
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
        return CurationRow(question, line["source"], line["license"])

    def rows(self, ids: Iterable[str]) -> Iterator[CurationRow]:
        """Reads rows one at a time."""
        return (self.row(row_id) for row_id in ids)

    def close(self) -> None:
        self._file.close()


class Journal:
    """The labels of one stage: a line per entry, keyed by `row` and, where there are several, `sample`.

    Of several lines with one key the newest counts, for which reason a failed entry can be repeated.
    """

    def __init__(self, folder: Path, stage: str, shard: Shard):
        self.stage = stage
        self.entries: dict[tuple[str, int], dict[str, Any]] = {}
        for path in sorted((folder / "journal").glob(f"{stage}-*-of-{shard.count:03d}.jsonl")):
            for _, line in read_lines(path):
                self.entries[line["row"], line.get("sample", 0)] = line
        self._file = RecordFile(folder / "journal" / f"{stage}-{shard.name}.jsonl")

    def add(self, row: str, labels: Mapping[str, Any], sample: int = 0) -> None:
        """Appends the labels of a row, or of one of its samples.

        Raises:
            RunFailure: the disk is full.
        """
        line = {"row": row, "sample": sample, **labels}
        self._file.append(line)
        self.entries[row, sample] = line

    def get(self, row: str, sample: int = 0) -> dict[str, Any] | None:
        """Returns the newest entry, or None."""
        return self.entries.get((row, sample))

    def of_row(self, row: str, samples: int) -> list[dict[str, Any]]:
        """Returns the entries of the samples 0 to `samples` - 1 that exist."""
        return [entry for sample in range(samples) if (entry := self.get(row, sample)) is not None]

    def close(self) -> None:
        self._file.close()
