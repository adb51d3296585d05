"""Compiled programs by shape. An executable cannot recompile: it fails on a shape that it was not made for."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

Key = tuple[str, Hashable]


class CompiledPrograms:
    """Executables keyed by (program, shape), made ahead of time by `prepare` or on first use.

    ``late`` counts those made on first use after `prepare`: it stays 0 when the listed shapes are all that is
    ever dispatched.
    """

    def __init__(self, functions: dict[str, Callable]):
        self._functions = functions
        self._compiled: dict[Key, Callable] = {}
        self._prepared = False
        self.late = 0
        self.seconds = 0.0  # spent on compilation

    def __len__(self) -> int:
        return len(self._compiled)

    def prepare(self, examples: Sequence[tuple[Key, Sequence[Any]]], workers: int = 2) -> None:
        """Compiles every example's program, several at a time."""
        started = time.perf_counter()
        missing = [(key, arguments) for key, arguments in examples if key not in self._compiled]
        with ThreadPoolExecutor(workers) as pool:
            lowered = [(key, self._functions[key[0]].lower(*arguments)) for key, arguments in missing]
            for (key, _), made in zip(lowered, pool.map(lambda item: item[1].compile(), lowered), strict=True):
                self._compiled[key] = made
        self._prepared = True
        self.seconds += time.perf_counter() - started

    def __call__(self, key: Key, *arguments: Any) -> Any:
        made = self._compiled.get(key)
        if made is None:
            started = time.perf_counter()
            made = self._compiled[key] = self._functions[key[0]].lower(*arguments).compile()
            self.late += self._prepared
            self.seconds += time.perf_counter() - started
        return made(*arguments)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)
