"""Picture search by embeddings: any model that turns pictures into vectors, and their nearest neighbors by usearch.

A model is plugged in as ``module:function``; the function takes nothing and returns an ``EmbeddingProvider``. Vectors of
another model mean nothing to an index, so an index keeps the model's name and refuses any other.
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

_FILE = "vectors.usearch"


@runtime_checkable
class EmbeddingProvider(Protocol):
    name: str  # changes with the weights
    dimensions: int

    def embed(self, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
        """A vector for each encoded picture; its length does not matter. Searches call it from several threads.

        Raises ValueError for what is no picture.
        """


class DescriptorEmbedding:
    """The hand-made global descriptor of ``descriptors``, for tables too large to compare one by one."""

    name = "descriptor-1"
    dimensions = 2724

    def embed(self, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
        return np.array([descriptors.describe(image).vector for image in images], np.float32)


def load(plug: str) -> EmbeddingProvider:
    """The provider that ``module:function`` returns. Raises ValueError saying what is wrong with it."""
    module, _, function = plug.partition(":")
    try:
        provider = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"--embedding {plug!r} is no module:function to call without arguments: {error}") from None
    if not isinstance(provider, EmbeddingProvider):
        raise ValueError(f"--embedding {plug}: {type(provider).__name__} needs name, dimensions and embed(images)")
    return provider


class Vectors:
    """The vectors of an index's pictures, by cosine."""

    def __init__(self, provider: EmbeddingProvider, index):
        """``index`` is a ``usearch.index.Index`` whose keys are rows of the picture table."""
        self.provider, self._index = provider, index

    @classmethod
    def build(cls, provider: EmbeddingProvider, images: Iterable[bytes], batch: int = 32) -> Vectors:
        """Embeds ``batch`` pictures at a time. Raises ValueError for vectors of a wrong shape or without direction."""
        index = _usearch().Index(ndim=provider.dimensions, metric="cos", dtype="f16")
        images = iter(images)
        while part := list(itertools.islice(images, batch)):
            # One thread: the graph, and with it the answers, are then the same every time.
            index.add(np.arange(len(index), len(index) + len(part)), _checked(provider, part), threads=1)
        return cls(provider, index)

    def save(self, folder: str | Path) -> None:
        self._index.save(str(Path(folder) / _FILE))

    @classmethod
    def open(cls, provider: EmbeddingProvider, folder: str | Path) -> Vectors:
        """Vectors on disk, which are mapped, not read. Raises ValueError where they do not fit the provider."""
        index = _usearch().Index.restore(str(Path(folder) / _FILE), view=True)
        if index is None or index.ndim != provider.dimensions:
            raise ValueError(
                f"{folder}: the vectors are not {provider.dimensions} wide as those of {provider.name}; index anew"
            )
        return cls(provider, index)

    def nearest(self, image: bytes, k: int) -> tuple[Int64[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """Rows of the k nearest pictures, and their cosines. Raises ValueError for what is no picture."""
        found = self._index.search(_checked(self.provider, [image])[0], k)
        return found.keys.astype(np.int64), 1.0 - found.distances.astype(np.float64)


def _checked(provider: EmbeddingProvider, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
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
