"""Counts the programs that this process compiles, by listening to JAX's monitoring events.

With a fixed set of shapes nothing compiles after the warm-up; the counter names every program that does. Programs
loaded from the persistent compilation cache count as well, so that the count does not depend on the cache's content.
"""

from __future__ import annotations

import functools

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache  # listeners cannot be removed, so there is one per process
def _programs() -> list[str]:
    names: list[str] = []

    def listen(event: str, _seconds: float, **details: str) -> None:
        if event == _COMPILED:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


class RecompilationCounter:
    """Counts programs compiled since its creation or the last `reset`."""

    def __init__(self) -> None:
        self._all = _programs()
        self.reset()

    def reset(self) -> None:
        """Resets the count to zero; to be called at the end of the warm-up."""
        self._start = len(self._all)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the compiled functions, such as `jit(train_step)`, in order."""
        return tuple(self._all[self._start :])

    @property
    def count(self) -> int:
        return len(self._all) - self._start
