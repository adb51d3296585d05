"""A sequence of questions that are made when they are asked for, so that memory does not hold all images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from dv2_jax.data.question import Question


class LazyQuestions(Sequence[Question]):
    """Questions with known ids; item i is `make(i)`, made anew at each access. `make` must be safe in threads.

    `texts`, where a reader has them, are the same questions without their images, in memory.
    """

    def __init__(self, ids: Sequence[str], make: Callable[[int], Question], texts: Sequence[Question] = ()):
        self._ids, self._make, self.texts = tuple(ids), make, tuple(texts)

    def ids(self) -> list[str]:
        """Returns the ids of the questions, without making any."""
        return list(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> LazyQuestions: ...
    def __getitem__(self, index):
        positions = range(len(self._ids))[index]  # raises IndexError
        if isinstance(positions, range):
            return LazyQuestions(self._ids[index], lambda i: self._make(positions[i]), self.texts[index])
        return self._make(positions)

    def __iter__(self) -> Iterator[Question]:
        return map(self._make, range(len(self._ids)))
