"""Searches images by the embeddings of any model; nearest neighbors by usearch (HNSW).

A model is plugged in as `module:function`; the function takes no arguments and returns an `EmbeddingProvider`. An
index stores the model's name and rejects other models, whose vectors are not comparable.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64

from tools_service.search.indexing import descriptors

_VECTORS_FILE = "vectors.usearch"


@runtime_checkable
class EmbeddingProvider(Protocol):
    """A model that embeds images."""

    name: str  # identifies the weights
    dimensions: int

    def embed(self, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
        """Returns one vector, of any norm, per encoded image. Must be thread-safe. Raises ValueError if not an image."""


class DescriptorEmbedding:
    """Embeds with the global vector of `descriptors`, for tables too large for exhaustive comparison."""

    name = "descriptor-1"
    dimensions = 2724

    def embed(self, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
        return np.array([descriptors.describe_image(image).vector for image in images], np.float32)


def load_embedding(embedding_spec: str) -> EmbeddingProvider:
    """Returns the provider that `module:function` creates. Raises ValueError naming the problem."""
    module, _, function = embedding_spec.partition(":")
    try:
        provider = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"--embedding {embedding_spec!r} is no module:function to call without arguments: {error}"
        ) from None
    if not isinstance(provider, EmbeddingProvider):
        raise ValueError(
            f"--embedding {embedding_spec}: {type(provider).__name__} needs name, dimensions and embed(images)"
        )
    return provider


class VectorIndex:
    """Holds the vectors of an index's images for cosine similarity search."""

    def __init__(self, provider: EmbeddingProvider, index):
        """Takes a `usearch.index.Index` whose keys are rows of the image table."""
        self.provider, self._index = provider, index

    @classmethod
    def build(cls, provider: EmbeddingProvider, images: Iterable[bytes], batch: int = 32) -> VectorIndex:
        """Embeds `batch` images at a time. Raises ValueError for vectors of a wrong shape, zero or not finite."""
        index = _usearch().Index(ndim=provider.dimensions, metric="cos", dtype="f16")
        images = iter(images)
        while part := list(itertools.islice(images, batch)):
            # One thread makes the HNSW graph, and thereby the results, deterministic.
            index.add(np.arange(len(index), len(index) + len(part)), _embed_checked(provider, part), threads=1)
        return cls(provider, index)

    def save(self, folder: str | Path) -> None:
        self._index.save(str(Path(folder) / _VECTORS_FILE))

    @classmethod
    def open(cls, provider: EmbeddingProvider, folder: str | Path) -> VectorIndex:
        """Memory-maps vectors on disk. Raises ValueError if they do not match the provider."""
        index = _usearch().Index.restore(str(Path(folder) / _VECTORS_FILE), view=True)
        if index is None or index.ndim != provider.dimensions:
            raise ValueError(
                f"{folder}: the vectors are not {provider.dimensions} wide as those of {provider.name}; index anew"
            )
        return cls(provider, index)

    def nearest(self, image: bytes, k: int) -> tuple[Int64[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """Returns the rows of the k nearest images and their cosines. Raises ValueError if `image` is not an image."""
        found = self._index.search(_embed_checked(self.provider, [image])[0], k)
        return found.keys.astype(np.int64), 1.0 - found.distances.astype(np.float64)


def _embed_checked(provider: EmbeddingProvider, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
    vectors = np.asarray(provider.embed(images), np.float32)
    if vectors.shape != (len(images), provider.dimensions):
        raise ValueError(
            f"{provider.name} gave vectors of shape {vectors.shape}, not {(len(images), provider.dimensions)}"
        )
    if not np.isfinite(vectors).all() or not (np.abs(vectors).max(axis=1) > 0).all():
        raise ValueError(f"{provider.name} gave a vector that is zero or not finite")
    return vectors


def _usearch():
    try:
        import usearch.index
    except ImportError:
        raise ValueError("--embedding needs usearch: pip install 'dv2_jax[vectors]'") from None
    return usearch.index
