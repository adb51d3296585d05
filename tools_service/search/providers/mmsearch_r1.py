"""Serves the image search results released with MMSearch-R1, which DeepEyesV2 was trained with.

The release is one JSON file, `{"fvqa_train_7": {"tool_returned_web_title": [...], "cached_images_path": [... or
null]}}`, and a folder of images. Its keys are the `extra_info.index` of data set rows. A search sends an image, so
the data set is read to map the SHA-256 of its images to keys.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from tools_service.search.http import schemas
from tools_service.search.indexing import descriptors
from tools_service.search.indexing.corpora import image_bytes, read_rows
from tools_service.search.provider import SearchError, SearchHit


class MMSearchEntry(BaseModel):
    """The released results for one question."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    tool_returned_web_title: list[str]
    cached_images_path: list[str | None]

    @model_validator(mode="after")
    def _pairs(self) -> MMSearchEntry:
        if len(self.tool_returned_web_title) != len(self.cached_images_path):
            raise ValueError("as many titles as images are needed")
        return self


class MMSearchR1Cache:
    """The image provider that serves the released results."""

    name = "mmsearch-r1"

    def __init__(self, results: dict[str, list[tuple[str, Path]]], keys: dict[bytes, str]):
        """Takes titles and image files by key in `results`, and the key by SHA-256 of the query image in `keys`."""
        self._results, self._keys = results, keys

    @classmethod
    def open(cls, cache: str, rows: str) -> MMSearchR1Cache:
        """Reads `cache`, the JSON file, and `rows`, the Parquet or JSONL file of the data set. Raises ValueError.

        Results without an image, or whose file is missing, are skipped, as in the released code.
        """
        try:
            entries = TypeAdapter(dict[str, MMSearchEntry]).validate_json(Path(cache).read_bytes())
        except OSError as error:
            raise ValueError(f"{cache}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{cache}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        folder = Path(cache).parent
        results = {key: _existing_results(entry, folder) for key, entry in entries.items()}
        if not any(results.values()):
            raise ValueError(f"{cache} names no image that exists; its paths are relative to {folder.resolve()}")
        keys = _keys_by_image_digest(rows)
        if not keys.values() & results.keys():
            raise ValueError(f'no "extra_info.index" of {rows} is a key of {cache}: is it the file of the same split?')
        return cls(results, keys)

    async def search(self, image: bytes, k: int) -> list[SearchHit]:
        key = self._keys.get(hashlib.sha256(image).digest())
        if key not in self._results:
            raise SearchError(f"{self.name} has no results for this image")
        return await asyncio.to_thread(lambda: [_hit(title, path) for title, path in self._results[key][:k]])


def _existing_results(entry: MMSearchEntry, folder: Path) -> list[tuple[str, Path]]:
    pairs = zip(entry.tool_returned_web_title, entry.cached_images_path, strict=True)
    return [(title, folder / path) for title, path in pairs if path and (folder / path).is_file()]


def _keys_by_image_digest(rows: str) -> dict[bytes, str]:
    keys = {}
    for number, row in enumerate(read_rows(rows), start=1):
        index = (row.get("extra_info") or {}).get("index", row.get("index"))
        images = row.get("images") or ()
        if index is None or not images:
            continue  # questions without an image never search by image
        data = image_bytes(images[0], Path(rows).parent, f"{rows}: row {number}")
        keys[hashlib.sha256(data).digest()] = str(index)
    return keys


def _hit(title: str, path: Path) -> SearchHit:
    item = schemas.clean_hit(title)
    try:
        return SearchHit(item.title, thumbnail=descriptors.thumbnail_png(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SearchError(f"an image of the cache cannot be read: {type(error).__name__}") from None
