"""Image search results as released with MMSearch-R1 and used to train DeepEyesV2 (spec 4.3).

One JSON file: ``{"fvqa_train_7": {"tool_returned_web_title": [...], "cached_images_path": [... or null]}}``, and a
folder of pictures. The keys are those of data-set rows, ``extra_info.index``; since a search sends a picture, the rows
say which picture belongs to which key.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from tools_service.search.http import schemas
from tools_service.search.indexing import descriptors
from tools_service.search.indexing.corpora import picture_bytes, read_rows
from tools_service.search.provider import Item, SearchError


class Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    tool_returned_web_title: list[str]
    cached_images_path: list[str | None]

    @model_validator(mode="after")
    def _pairs(self) -> Entry:
        if len(self.tool_returned_web_title) != len(self.cached_images_path):
            raise ValueError("as many titles as pictures are needed")
        return self


class ReleasedCache:
    """The image provider of that cache."""

    name = "mmsearch-r1"

    def __init__(self, results: dict[str, list[tuple[str, Path]]], keys: dict[bytes, str]):
        """``results``: titles and picture files by key. ``keys``: by SHA-256 of the picture that is searched for."""
        self._results, self._keys = results, keys

    @classmethod
    def open(cls, cache: str, rows: str) -> ReleasedCache:
        """``cache`` is the JSON file, ``rows`` the Parquet or JSONL file of the data set. Raises ValueError.

        Results without a picture, or whose file is missing, are left out, as in the released code.
        """
        try:
            entries = TypeAdapter(dict[str, Entry]).validate_json(Path(cache).read_bytes())
        except OSError as error:
            raise ValueError(f"{cache}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{cache}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        folder = Path(cache).parent
        results = {key: _results(entry, folder) for key, entry in entries.items()}
        if not any(results.values()):
            raise ValueError(f"{cache} names no picture that exists; its paths are relative to {folder.resolve()}")
        keys = _keys(rows)
        if not keys.values() & results.keys():
            raise ValueError(f'no "extra_info.index" of {rows} is a key of {cache}: is it the file of the same split?')
        return cls(results, keys)

    async def search(self, image: bytes, k: int) -> list[Item]:
        key = self._keys.get(hashlib.sha256(image).digest())
        if key not in self._results:
            raise SearchError(f"{self.name} has no results for this picture")
        return await asyncio.to_thread(lambda: [_item(title, path) for title, path in self._results[key][:k]])


def _results(entry: Entry, folder: Path) -> list[tuple[str, Path]]:
    pairs = zip(entry.tool_returned_web_title, entry.cached_images_path, strict=True)
    return [(title, folder / path) for title, path in pairs if path and (folder / path).is_file()]


def _keys(rows: str) -> dict[bytes, str]:
    keys = {}
    for number, row in enumerate(read_rows(rows), start=1):
        index = (row.get("extra_info") or {}).get("index", row.get("index"))
        images = row.get("images") or ()
        if index is None or not images:
            continue  # rows without a picture never search for one
        data = picture_bytes(images[0], Path(rows).parent, f"{rows}: row {number}")
        keys[hashlib.sha256(data).digest()] = str(index)
    return keys


def _item(title: str, path: Path) -> Item:
    item = schemas.item(title)
    try:
        return Item(item.title, thumbnail=descriptors.small_png(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SearchError(f"a picture of the cache cannot be read: {type(error).__name__}") from None
