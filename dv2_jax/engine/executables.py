"""Cache of ahead-of-time compiled executables, keyed by program and shape.

An executable raises an error on another shape instead of compiling again, as a jitted function would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from dv2_jax.parallel.mesh import use_mesh

Key = tuple[str, Hashable]


# Shared by all engines of this process: a second engine of the same sizes compiles nothing.
_PROCESS_CACHE: dict[Hashable, Callable] = {}


class ExecutableCache:
    """Executables keyed by (program, shape), compiled ahead of time by `warmup` or on first use.

    Attributes:
        compiled_after_warmup: number of executables compiled on first use after `warmup`; 0 if the buckets cover
            every dispatched shape.
        seconds: time spent on compilation.
    """

    def __init__(self, functions: Mapping[str, Any], mesh: Mesh | None = None):
        self._functions, self._mesh = functions, mesh
        self._executables: dict[Key, Callable] = {}
        self._warmed_up = False
        self.compiled_after_warmup = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._executables)

    def by_key(self) -> dict[Key, Callable]:
        """Returns all executables by key."""
        return dict(self._executables)

    def warmup(self, examples: Sequence[tuple[Key, Sequence[Any]]], workers: int = 2) -> None:
        """Compiles the program of each (key, example arguments) in `workers` threads."""
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda example: self._compile(*example), examples))
        self._warmed_up = True

    def __call__(self, key: Key, *arguments: Any) -> Any:
        executable = self._executables.get(key)
        if executable is None:
            executable = self._compile(key, arguments)
        return executable(*arguments)

    def _compile(self, key: Key, arguments: Sequence[Any]) -> Callable:
        function = self._functions[key[0]]
        leaves, structure = jax.tree.flatten(tuple(arguments))
        name = (function, structure, tuple((x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in leaves))
        if name not in _PROCESS_CACHE:
            started = time.perf_counter()
            with use_mesh(self._mesh):
                _PROCESS_CACHE[name] = function.lower(*arguments).compile()
            self.seconds += time.perf_counter() - started
            self.compiled_after_warmup += self._warmed_up
        self._executables[key] = _PROCESS_CACHE[name]
        return _PROCESS_CACHE[name]
