"""Image search over captioned pictures: the same bytes, then the same picture, then similar ones.

Candidates come from the global vectors (exact cosine, one matrix product) and are put in order by a
geometric check of local features.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8, UInt64

from tools_service.search import descriptors
from tools_service.search.descriptors import Local
from tools_service.search.provider import BadQuery, Item
from tools_service.search.text import read_rows

_META = "tools_index.json"
_ARRAYS = "pictures.npz"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_CANDIDATES = 40
_NEAR_BITS = 8  # perceptual hashes this close are the same picture, recompressed or scaled
_SURE = 40  # agreeing local features that add full weight


@dataclass(frozen=True)
class Table:
    """The index as arrays; ``*_ends`` are the ends of each picture's part of a concatenation."""

    digests: UInt8[np.ndarray, "N 32"]
    hashes: UInt64[np.ndarray, "N"]
    vectors: Float32[np.ndarray, "N D"]
    points: Float32[np.ndarray, "K 2"]
    features: UInt8[np.ndarray, "K 32"]
    feature_ends: Int64[np.ndarray, "N"]
    thumbnails: UInt8[np.ndarray, "X"]
    thumbnail_ends: Int64[np.ndarray, "N"]

    def local(self, row: int) -> Local:
        start = self.feature_ends[row - 1] if row else 0
        return Local(self.points[start : self.feature_ends[row]], self.features[start : self.feature_ends[row]])

    def thumbnail(self, row: int) -> bytes:
        start = self.thumbnail_ends[row - 1] if row else 0
        return self.thumbnails[start : self.thumbnail_ends[row]].tobytes()


def read_pictures(path: str | Path) -> Iterator[tuple[bytes, str, str]]:
    """(encoded picture, title, url) of a JSONL table with "image", "title" and "url", or of a folder.

    Paths in a table are relative to it; in a folder the title is the file's name. Raises ValueError.
    """
    path = Path(path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES):
            yield file.read_bytes(), file.stem.replace("_", " ").replace("-", " "), ""
        return
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("image"), str) or not isinstance(row.get("title"), str):
            raise ValueError(f'{path}: row {number} needs "image" and "title", both strings; it has {sorted(row)}')
        yield (path.parent / row["image"]).read_bytes(), row["title"], str(row.get("url") or "")


def build(pictures: Iterable[tuple[bytes, str, str]]) -> tuple[Table, list[dict]]:
    """The table and the captions. Raises ValueError naming a picture that cannot be read."""
    rows, digests, described = [], [], []
    for data, title, url in pictures:
        try:
            described.append(descriptors.describe(data))
        except ValueError as error:
            raise ValueError(f"picture {len(rows) + 1} ({title!r}): {error}") from None
        digests.append(np.frombuffer(hashlib.sha256(data).digest(), np.uint8))
        rows.append({"title": title, "url": url})
    if not rows:
        raise ValueError("there is no picture to index")
    table = Table(
        np.array(digests),
        np.array([d.perceptual for d in described], np.uint64),
        np.array([d.vector for d in described]),
        np.concatenate([d.local.points for d in described]),
        np.concatenate([d.local.descriptors for d in described]),
        np.cumsum([len(d.local.points) for d in described]),
        np.frombuffer(b"".join(d.thumbnail for d in described), np.uint8),
        np.cumsum([len(d.thumbnail) for d in described]),
    )
    return table, rows


def save(table: Table, rows: list[dict], folder: str) -> None:
    np.savez(os.path.join(folder, _ARRAYS), **vars(table))
    Path(folder, _META).write_text(json.dumps({"kind": "image", "pictures": rows}))


class PictureIndex:
    """The embedded image provider."""

    def __init__(self, table: Table, rows: list[dict]):
        self._table, self._rows = table, rows
        self.name = f"image: {len(rows)} pictures by hash, descriptor and geometry"

    @classmethod
    def open(cls, path: str) -> PictureIndex:
        """An index folder, or pictures (folder or JSONL) that are then indexed in memory. Raises ValueError."""
        meta = os.path.join(path, _META)
        if not os.path.exists(path):
            raise ValueError(f"{path} does not exist: give an image index, a folder of pictures, or a JSONL table")
        if not os.path.isfile(meta):
            return cls(*build(read_pictures(path)))
        with np.load(os.path.join(path, _ARRAYS), allow_pickle=False) as arrays:
            table = Table(**dict(arrays))
        return cls(table, json.loads(Path(meta).read_text())["pictures"])

    async def search(self, image: bytes, k: int) -> list[Item]:
        return await asyncio.to_thread(self.search_now, image, k)

    def search_now(self, image: bytes, k: int) -> list[Item]:
        """As ``search``, in this thread."""
        try:
            query = descriptors.describe(image)
        except ValueError as error:
            raise BadQuery(str(error)) from None
        table = self._table
        scores: Float[np.ndarray, "N"] = table.vectors @ query.vector
        distance = np.bitwise_count(table.hashes ^ np.uint64(query.perceptual))
        same = (table.digests == np.frombuffer(hashlib.sha256(image).digest(), np.uint8)).all(axis=1)
        scores = scores + np.where(distance <= _NEAR_BITS, 2.0 - distance / 16, 0.0) + np.where(same, 4.0, 0.0)
        candidates = np.argsort(-scores, kind="stable")[: max(_CANDIDATES, k)]
        if not same.any():
            for row in candidates:
                scores[row] += min(descriptors.inliers(query.local, table.local(row)), _SURE) / _SURE
            candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        return [self._item(int(row), float(scores[row])) for row in candidates[:k]]

    def _item(self, row: int, score: float) -> Item:
        return Item(self._rows[row]["title"], self._rows[row]["url"], thumbnail=self._table.thumbnail(row), score=score)
