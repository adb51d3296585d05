"""Searches captioned images: identical bytes rank first, then near duplicates, then similar images.

Candidates are retrieved by exact cosine similarity of global vectors (one matrix product) or by the embeddings of a
plugged-in model, and reranked by geometric verification of local features.
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
from tools_service.search.indexing.corpora import image_bytes, read_rows
from tools_service.search.indexing.descriptors import LocalFeatures
from tools_service.search.indexing.embedding import EmbeddingProvider, VectorIndex
from tools_service.search.provider import BadQuery, SearchError, SearchHit

_META = "tools_index.json"
_ARRAYS = "pictures.npz"  # file name of stored indexes
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_CANDIDATES = 40  # images reranked by geometry
_MAX_HASH_DISTANCE = 8  # largest Hamming distance of the perceptual hashes of near duplicates (recompressed, scaled)
_FULL_WEIGHT_INLIERS = 40  # geometric inliers that add the full weight of 1 to a score


@dataclass(frozen=True)
class ImageTable:
    """The index as arrays; `*_ends` are the end offsets of each image's rows in a concatenation."""

    digests: UInt8[np.ndarray, "N 32"]
    hashes: UInt64[np.ndarray, "N"]
    vectors: Float32[np.ndarray, "N D"]
    points: Float32[np.ndarray, "K 2"]
    features: UInt8[np.ndarray, "K 32"]
    feature_ends: Int64[np.ndarray, "N"]
    thumbnails: UInt8[np.ndarray, "X"]
    thumbnail_ends: Int64[np.ndarray, "N"]

    def local(self, row: int) -> LocalFeatures:
        """Returns the local features of one image."""
        start = self.feature_ends[row - 1] if row else 0
        return LocalFeatures(self.points[start : self.feature_ends[row]], self.features[start : self.feature_ends[row]])

    def thumbnail(self, row: int) -> bytes:
        """Returns the PNG thumbnail of one image."""
        start = self.thumbnail_ends[row - 1] if row else 0
        return self.thumbnails[start : self.thumbnail_ends[row]].tobytes()


def read_images(path: str | Path) -> Iterator[tuple[bytes, str, str]]:
    """Yields (encoded image, title, url) of a JSONL or Parquet table with "image", "title" and "url", or of a folder.

    "image" is a path relative to the table, or bytes; in a folder the title is the file name. Raises ValueError.
    """
    path = Path(path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES):
            yield file.read_bytes(), file.stem.replace("_", " ").replace("-", " "), ""
        return
    for number, row in enumerate(read_rows(path), start=1):
        if row.get("image") is None or not isinstance(row.get("title"), str):
            raise ValueError(f'{path}: row {number} needs "image" and "title", a string; it has {sorted(row)}')
        yield image_bytes(row["image"], path.parent, f"{path}: row {number}"), row["title"], str(row.get("url") or "")


def build_table(images: Iterable[tuple[bytes, str, str]]) -> tuple[ImageTable, list[dict]]:
    """Computes the index arrays and the captions. Raises ValueError naming an image that cannot be read."""
    rows: list[dict] = []
    digests, described = [], []
    for data, title, url in images:
        try:
            described.append(descriptors.describe_image(data))
        except ValueError as error:
            raise ValueError(f"image {len(rows) + 1} ({title!r}): {error}") from None
        digests.append(np.frombuffer(hashlib.sha256(data).digest(), np.uint8))
        rows.append({"title": title, "url": url})
    if not rows:
        raise ValueError("there is no image to index")
    table = ImageTable(
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


def embed_images(provider: EmbeddingProvider, path: str | Path) -> VectorIndex:
    """Embeds the images that `read_images` yields, as a stream that need not fit into memory. Raises ValueError."""
    return VectorIndex.build(provider, (data for data, _, _ in read_images(path)))


def save_index(table: ImageTable, rows: list[dict], folder: str, vectors: VectorIndex | None = None) -> None:
    np.savez(os.path.join(folder, _ARRAYS), **vars(table))
    meta = {"kind": "image", "pictures": rows}  # key of stored indexes
    if vectors is not None:
        vectors.save(folder)
        meta["embedding"] = vectors.provider.name
    Path(folder, _META).write_text(json.dumps(meta))


class ImageIndex:
    """The embedded image provider: an index searched in this process."""

    def __init__(self, table: ImageTable, rows: list[dict], vectors: VectorIndex | None = None):
        """Uses the embeddings in `vectors` for similarity; without them, the global descriptors of the table."""
        self._table, self._rows, self._vectors = table, rows, vectors
        by = f"embedding {vectors.provider.name}" if vectors else "descriptor"
        self.name = f"image: {len(rows)} pictures by hash, {by} and geometry"

    @classmethod
    def open(cls, path: str, embedding_spec: str = "") -> ImageIndex:
        """Opens an index folder, or indexes images (a folder or table) in memory.

        `embedding_spec` names the embedding model (`embedding.load_embedding`), which must be the one that an index
        folder was built with. Raises ValueError.
        """
        provider = embedding.load_embedding(embedding_spec) if embedding_spec else None
        meta = os.path.join(path, _META)
        if not os.path.exists(path):
            raise ValueError(
                f"{path} does not exist: give an image index, a folder of images, or a table (JSONL, Parquet)"
            )
        if not os.path.isfile(meta):
            return cls(*build_table(read_images(path)), embed_images(provider, path) if provider else None)
        described = json.loads(Path(meta).read_text())
        made_by = described.get("embedding")
        if made_by != (provider.name if provider else None):
            raise ValueError(f"{path} has vectors of {made_by or 'no embedding'}, not of {provider.name if provider else 'none'}: "
                             "give the --embedding that it was made with, or index anew")  # fmt: skip
        with np.load(os.path.join(path, _ARRAYS), allow_pickle=False) as arrays:
            table = ImageTable(**dict(arrays))
        return cls(table, described["pictures"], VectorIndex.open(provider, path) if provider else None)

    async def search(self, image: bytes, k: int) -> list[SearchHit]:
        return await asyncio.to_thread(self.search_sync, image, k)

    def search_sync(self, image: bytes, k: int) -> list[SearchHit]:
        """Searches in the calling thread; `search` runs it in a worker thread."""
        try:
            query = descriptors.describe_image(image)
        except ValueError as error:
            raise BadQuery(str(error)) from None
        table = self._table
        scores = self._similarities(image, query.vector, max(_CANDIDATES, k))
        distance = np.bitwise_count(table.hashes ^ np.uint64(query.perceptual))
        same = (table.digests == np.frombuffer(hashlib.sha256(image).digest(), np.uint8)).all(axis=1)
        scores = scores + np.where(distance <= _MAX_HASH_DISTANCE, 2.0 - distance / 16, 0.0) + np.where(same, 4.0, 0.0)
        candidates = np.argsort(-scores, kind="stable")[: max(_CANDIDATES, k)]
        if not same.any():
            for row in candidates:
                scores[row] += (
                    min(descriptors.count_inliers(query.local, table.local(row)), _FULL_WEIGHT_INLIERS)
                    / _FULL_WEIGHT_INLIERS
                )
            candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        return [self._hit(int(row), float(scores[row])) for row in candidates[:k]]

    def _similarities(self, image: bytes, vector: Float32[np.ndarray, "D"], k: int) -> Float[np.ndarray, "N"]:
        """Returns the cosine similarity of all images; with an embedding, -1 for all but the k nearest."""
        if self._vectors is None:
            return self._table.vectors @ vector
        scores = np.full(len(self._rows), -1.0)
        try:
            near, cosines = self._vectors.nearest(image, min(k, len(scores)))
        except ValueError as error:  # the image was readable, so the embedding model failed
            raise SearchError(str(error)) from None
        scores[near] = cosines
        return scores

    def _hit(self, row: int, score: float) -> SearchHit:
        return SearchHit(
            self._rows[row]["title"], self._rows[row]["url"], thumbnail=self._table.thumbnail(row), score=score
        )
