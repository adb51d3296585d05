"""Image search over captioned pictures: the same bytes, then the same picture, then similar ones.

Candidates come from the global vectors (exact cosine, one matrix product) or from the embeddings of a model that is
plugged in, and are put in order by a geometric check of local features.
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

from tools_service.search.indexing import descriptors, embedding
from tools_service.search.indexing.corpora import picture_bytes, read_rows
from tools_service.search.indexing.descriptors import Local
from tools_service.search.indexing.embedding import EmbeddingProvider, Vectors
from tools_service.search.provider import BadQuery, Item, SearchError

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
    """(encoded picture, title, url) of a JSONL or Parquet table with "image", "title" and "url", or of a folder.

    "image" is a path relative to the table, or bytes; in a folder the title is the file's name. Raises ValueError.
    """
    path = Path(path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES):
            yield file.read_bytes(), file.stem.replace("_", " ").replace("-", " "), ""
        return
    for number, row in enumerate(read_rows(path), start=1):
        if row.get("image") is None or not isinstance(row.get("title"), str):
            raise ValueError(f'{path}: row {number} needs "image" and "title", a string; it has {sorted(row)}')
        yield picture_bytes(row["image"], path.parent, f"{path}: row {number}"), row["title"], str(row.get("url") or "")


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


def embed(provider: EmbeddingProvider, path: str | Path) -> Vectors:
    """Vectors of the pictures that ``read_pictures`` reads; there may be more of them than memory holds. Raises ValueError."""
    return Vectors.build(provider, (data for data, _, _ in read_pictures(path)))


def save(table: Table, rows: list[dict], folder: str, vectors: Vectors | None = None) -> None:
    np.savez(os.path.join(folder, _ARRAYS), **vars(table))
    meta = {"kind": "image", "pictures": rows}
    if vectors is not None:
        vectors.save(folder)
        meta["embedding"] = vectors.provider.name
    Path(folder, _META).write_text(json.dumps(meta))


class PictureIndex:
    """The embedded image provider."""

    def __init__(self, table: Table, rows: list[dict], vectors: Vectors | None = None):
        """Without ``vectors``, the table's own decide which pictures are alike."""
        self._table, self._rows, self._vectors = table, rows, vectors
        by = f"embedding {vectors.provider.name}" if vectors else "descriptor"
        self.name = f"image: {len(rows)} pictures by hash, {by} and geometry"

    @classmethod
    def open(cls, path: str, plug: str = "") -> PictureIndex:
        """An index folder, or pictures (folder or table) that are then indexed in memory.

        ``plug`` names the embedding (``embedding.load``), and must be that of the index folder. Raises ValueError.
        """
        provider = embedding.load(plug) if plug else None
        meta = os.path.join(path, _META)
        if not os.path.exists(path):
            raise ValueError(
                f"{path} does not exist: give an image index, a folder of pictures, or a table (JSONL, Parquet)"
            )
        if not os.path.isfile(meta):
            return cls(*build(read_pictures(path)), embed(provider, path) if provider else None)
        described = json.loads(Path(meta).read_text())
        made_by = described.get("embedding")
        if made_by != (provider.name if provider else None):
            raise ValueError(f"{path} has vectors of {made_by or 'no embedding'}, not of {provider.name if provider else 'none'}: "
                             "give the --embedding that it was made with, or index anew")  # fmt: skip
        with np.load(os.path.join(path, _ARRAYS), allow_pickle=False) as arrays:
            table = Table(**dict(arrays))
        return cls(table, described["pictures"], Vectors.open(provider, path) if provider else None)

    async def search(self, image: bytes, k: int) -> list[Item]:
        return await asyncio.to_thread(self.search_now, image, k)

    def search_now(self, image: bytes, k: int) -> list[Item]:
        """As ``search``, in this thread."""
        try:
            query = descriptors.describe(image)
        except ValueError as error:
            raise BadQuery(str(error)) from None
        table = self._table
        scores = self._similarities(image, query.vector, max(_CANDIDATES, k))
        distance = np.bitwise_count(table.hashes ^ np.uint64(query.perceptual))
        same = (table.digests == np.frombuffer(hashlib.sha256(image).digest(), np.uint8)).all(axis=1)
        scores = scores + np.where(distance <= _NEAR_BITS, 2.0 - distance / 16, 0.0) + np.where(same, 4.0, 0.0)
        candidates = np.argsort(-scores, kind="stable")[: max(_CANDIDATES, k)]
        if not same.any():
            for row in candidates:
                scores[row] += min(descriptors.inliers(query.local, table.local(row)), _SURE) / _SURE
            candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        return [self._item(int(row), float(scores[row])) for row in candidates[:k]]

    def _similarities(self, image: bytes, vector: Float32[np.ndarray, "D"], k: int) -> Float[np.ndarray, "N"]:
        """Cosines of all pictures; with an embedding, of the k nearest, and -1 for the others."""
        if self._vectors is None:
            return self._table.vectors @ vector
        scores = np.full(len(self._rows), -1.0)
        try:
            near, cosines = self._vectors.nearest(image, min(k, len(scores)))
        except ValueError as error:  # the picture itself was readable
            raise SearchError(str(error)) from None
        scores[near] = cosines
        return scores

    def _item(self, row: int, score: float) -> Item:
        return Item(self._rows[row]["title"], self._rows[row]["url"], thumbnail=self._table.thumbnail(row), score=score)
