"""Host bookkeeping of the device-resident cache of image embeddings, keyed by image digest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int


class ImageEmbeddingCache:
    """LRU allocation of embedding rows to images. The embeddings themselves are a device array of the engine.

    The rows of an image need not be contiguous: prefill gathers them by index.
    """

    def __init__(self, rows: int):
        self.num_rows = rows
        self._free = list(range(rows))
        self._entries: OrderedDict[str, Int[np.ndarray, "m"]] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def rows_of(self, digest: str) -> Int[np.ndarray, "m"]:
        """Returns the rows of a cached image, in placeholder order, and marks it as most recently used."""
        self._entries.move_to_end(digest)
        return self._entries[digest]

    def allocate(self, digest: str, tokens: int, pinned: Iterable[str]) -> Int[np.ndarray, "m"] | None:
        """Allocates rows for a new image, evicting least recently used ones; None if only `pinned` images are left."""
        pinned = set(pinned)
        while len(self._free) < tokens:
            victim = next((name for name in self._entries if name not in pinned), None)
            if victim is None:
                return None
            self._free.extend(self._entries.pop(victim).tolist())
        taken = np.array([self._free.pop() for _ in range(tokens)], np.int32)
        self._entries[digest] = taken
        return taken

    def clear(self) -> None:
        """Invalidates the cache; called when the weights change."""
        self._entries.clear()
        self._free = list(range(self.num_rows))
