"""Recorded searches: append-only lines with the results of text and image searches, and their images by digest.

A folder of records has `searches-HOST.jsonl` and `images/DIGEST`. A search is found by its kind and by the text of its query
(white space and Unicode form do not matter) or the digest of its image. One recorded for more results serves a request for
fewer. Of several lines for one search the newest counts; a line that a killed process left incomplete is ignored. Released
image search results (`evaluation.released_search_cache`) are found by the `index` of the question that has the image.
"""

from __future__ import annotations

import hashlib
import json
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.config import Config, ConfigError, RunFailure
from dv2_jax.data.question import Question
from dv2_jax.evaluation.readers.table_file import IMAGE_DIGEST
from dv2_jax.evaluation.released_search_cache import JSON, PICKLE, ReleasedResult, read_released_cache
from dv2_jax.files import atomic_write
from dv2_jax.parallel import distributed
from tools_service.client import ImageSearchRequest, SearchItem, Status, TextSearchRequest, ToolResult

FOLDER = "search_records"  # in the run directory
SearchRequest = TextSearchRequest | ImageSearchRequest
SearchKey = tuple[str, str]  # (kind of request, query or digest of the image)


def search_key(request: SearchRequest) -> SearchKey:
    """Returns what identifies a search, its number of results aside."""
    if isinstance(request, ImageSearchRequest):
        return request.kind, hashlib.sha256(request.image).hexdigest()
    return request.kind, " ".join(unicodedata.normalize("NFC", request.query).split())


@dataclass(frozen=True)
class SearchRecord:
    """One recorded search: `items` hold the digest of an image in place of the image."""

    key: SearchKey
    k: int
    status: str
    items: tuple[dict[str, Any], ...]
    message: str = ""
    provider: str = ""

    def serves(self, k: int) -> bool:
        """Returns whether it has all results of a search for `k`: it was for as many, or found fewer than it might."""
        return self.k >= k or len(self.items) < self.k

    def to_line(self) -> str:
        """Converts to a line of JSON."""
        kind, query = self.key
        fields = {"kind": kind, "query": query, "k": self.k, "status": self.status, "items": list(self.items)}
        return json.dumps(fields | {"message": self.message, "provider": self.provider}, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> SearchRecord | None:
        """Converts a line; None if it is incomplete or none of ours."""
        try:
            fields = json.loads(line)
            return cls(
                (fields["kind"], fields["query"]), int(fields["k"]), fields["status"], tuple(fields["items"]),
                fields.get("message", ""), fields.get("provider", ""),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            return None


class SearchRecords:
    """The recorded searches of a run. Methods are safe in threads.

    Args:
        folder: where new searches are recorded; earlier ones in it are read.
        others: further folders of records and released result files, which are only read.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()):
        self.folder = folder
        self._folders: list[Path] = []
        self._records: dict[SearchKey, tuple[SearchRecord, Path]] = {}
        self._released: dict[str, tuple[ReleasedResult, ...]] = {}
        self._rows: dict[str, list[str]] = {}  # digest of a question's image → `index` of the questions that have it
        self._lock = threading.Lock()
        for path in (*others, folder):  # the run's own records win
            if path.is_dir():
                self._read_folder(path)
            elif path != folder:
                self._read_file(path)

    def __len__(self) -> int:
        return len(self._records) + len(self._released)

    @classmethod
    def of_run(cls, config: Config, run_dir: Path) -> SearchRecords:
        """Opens the records that `eval.search_records` names: folders and released files, separated by commas.

        New searches are recorded in the first folder, or else in the run directory.

        Raises:
            ConfigError: a file does not exist or cannot be read.
        """
        paths = [Path(part.strip()) for part in config.eval.search_records.split(",") if part.strip()]
        folders = [path for path in paths if path.suffix not in (PICKLE, JSON)]
        folder = folders[0] if folders else run_dir / FOLDER
        return cls(folder, [path for path in paths if path != folder])

    def add_rows(self, questions: Iterable[Question]) -> None:
        """Makes released results known for the images of questions: of each its `index` and digest in `meta`."""
        for question in questions:
            digest, row = question.meta.get(IMAGE_DIGEST), question.meta.get("index")
            if digest and row is not None and str(row) not in (rows := self._rows.setdefault(digest, [])):
                rows.append(str(row))

    def find(self, request: SearchRequest) -> ToolResult | None:
        """Returns the recorded result of a search, or None."""
        key = search_key(request)
        with self._lock:
            found = self._records.get(key)
        if found is not None and found[0].serves(request.k):
            record, folder = found
            items = tuple(_load_item(item, folder) for item in record.items[: request.k])
            return ToolResult(
                request.request_id, request.kind, Status(record.status), items=items, message=record.message,
                provider=record.provider, cached=True,
            )  # fmt: skip
        released = next((self._released[row] for row in self._rows.get(key[1], ()) if row in self._released), None)
        if released is None or not isinstance(request, ImageSearchRequest):
            return None
        items = tuple(result.item() for result in released[: request.k])
        return ToolResult(request.request_id, request.kind, Status.OK, items=items, provider="released", cached=True)

    def add(self, request: SearchRequest, result: ToolResult) -> None:
        """Records a result.

        Raises:
            RunFailure: it cannot be written; the run can be continued.
        """
        try:
            items = tuple(self._store_item(item) for item in result.items)
            record = SearchRecord(
                search_key(request), request.k, result.status.value, items, result.message, result.provider
            )
            with self._lock:
                self._append(record.to_line())
                self._records[record.key] = record, self.folder
        except OSError as error:
            raise RunFailure(
                f"{error.filename or self.folder}: a search cannot be recorded: {error.strerror or error}; make room and"
                " start the same command again"
            ) from error

    def _store_item(self, item: SearchItem) -> dict[str, Any]:
        fields = {name: value for name, value in vars(item).items() if value and name != "thumbnail"}
        if item.thumbnail:
            digest = hashlib.sha256(item.thumbnail).hexdigest()
            path = self.folder / "images" / digest
            if not path.exists():
                atomic_write(path, item.thumbnail)
            fields["image"] = digest
        return fields

    def _append(self, line: str) -> None:
        path = self.folder / f"searches-{distributed.process_index()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else "\n" + line  # after a line that was cut off
            file.write(line.encode("utf-8"))

    def _read_folder(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n") and (record := SearchRecord.from_line(line)):
                        self._records[record.key] = record, folder
        for ending in (PICKLE, JSON):
            for path in sorted(folder.glob(f"*image_search_results_cache{ending}")):
                self._released |= read_released_cache(path)

    def _read_file(self, path: Path) -> None:
        if not path.exists():
            raise ConfigError(f"eval.search_records: there is no {path}")
        self._released |= read_released_cache(path)


def _load_item(fields: dict[str, Any], folder: Path) -> SearchItem:
    image = None
    if digest := fields.get("image"):
        try:
            image = (folder / "images" / digest).read_bytes()
        except OSError as error:
            raise RunFailure(
                f"{error.filename}: an image of a recorded search cannot be read: {error.strerror}"
            ) from error
    texts = {name: fields.get(name, "") for name in ("title", "url", "snippet", "date")}
    return SearchItem(**texts, thumbnail=image)
