"""The device's pool of encoded pictures: rows of merged embeddings, found by the picture's digest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int


class PicturePool:
    """Which rows hold which picture; the longest unused one makes room. Host bookkeeping alone.

    The rows of a picture need not be neighbors: a sequence reads them one by one, by index.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self._free = list(range(rows))
        self._held: OrderedDict[str, Int[np.ndarray, "m"]] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def rows_of(self, digest: str) -> Int[np.ndarray, "m"]:
        """Rows of a held picture, in placeholder order; marks it as used."""
        self._held.move_to_end(digest)
        return self._held[digest]

    def place(self, digest: str, tokens: int, pinned: Iterable[str]) -> Int[np.ndarray, "m"] | None:
        """Rows for a new picture; None when only pictures in ``pinned`` could make room."""
        pinned = set(pinned)
        while len(self._free) < tokens:
            victim = next((name for name in self._held if name not in pinned), None)
            if victim is None:
                return None
            self._free.extend(self._held.pop(victim).tolist())
        taken = np.array([self._free.pop() for _ in range(tokens)], np.int32)
        self._held[digest] = taken
        return taken

    def clear(self) -> None:
        """Forgets all pictures: the weights have changed."""
        self._held.clear()
        self._free = list(range(self.rows))
