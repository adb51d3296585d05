"""Counts the programs that this process compiles, by listening to JAX's own monitoring events.

A fixed set of shapes means that nothing compiles after the warm-up; a program that does is named here. One that the
persistent cache answers counts as well: in the next process it would have been compiled.
"""

from __future__ import annotations

import functools

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache  # a listener cannot be taken off again, so there is one per process
def _programs() -> list[str]:
    names: list[str] = []

    def listen(event: str, _seconds: float, **details: str) -> None:
        if event == _COMPILED:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


class RecompilationCounter:
    """Programs compiled since it was made, or since ``reset``."""

    def __init__(self) -> None:
        self._all = _programs()
        self.reset()

    def reset(self) -> None:
        """Starts again from zero; call it at the end of the warm-up."""
        self._start = len(self._all)

    @property
    def names(self) -> tuple[str, ...]:
        """The compiled functions' names, such as ``jit(train_step)``, in order."""
        return tuple(self._all[self._start :])

    @property
    def count(self) -> int:
        return len(self._all) - self._start
