"""Compiled programs by shape. An executable cannot recompile: it fails on a shape that it was not made for."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from dv2_jax.parallel.mesh import under

Key = tuple[str, Hashable]


# Every executable of this process: a second engine of the same sizes compiles nothing.
_SHARED: dict[Hashable, Callable] = {}


class CompiledPrograms:
    """Executables keyed by (program, shape), made ahead of time by `prepare` or on first use.

    ``late`` counts those compiled on first use after `prepare`: it stays 0 when the listed shapes are all that is
    ever dispatched.
    """

    def __init__(self, functions: dict[str, Callable], mesh: Mesh | None = None):
        self._functions, self._mesh = functions, mesh
        self._mine: dict[Key, Callable] = {}
        self._prepared = False
        self.late = 0
        self.seconds = 0.0  # spent on compilation

    def __len__(self) -> int:
        return len(self._mine)

    def made(self) -> dict[Key, Callable]:
        """All executables."""
        return dict(self._mine)

    def prepare(self, examples: Sequence[tuple[Key, Sequence[Any]]], workers: int = 2) -> None:
        """Compiles every example's program, several at a time."""
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda example: self._make(*example), examples))
        self._prepared = True

    def __call__(self, key: Key, *arguments: Any) -> Any:
        made = self._mine.get(key)
        if made is None:
            made = self._make(key, arguments)
        return made(*arguments)

    def _make(self, key: Key, arguments: Sequence[Any]) -> Callable:
        function = self._functions[key[0]]
        leaves, structure = jax.tree.flatten(tuple(arguments))
        name = (function, structure, tuple((x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in leaves))
        if name not in _SHARED:
            started = time.perf_counter()
            with under(self._mesh):
                _SHARED[name] = function.lower(*arguments).compile()
            self.seconds += time.perf_counter() - started
            self.late += self._prepared
        self._mine[key] = _SHARED[name]
        return _SHARED[name]
