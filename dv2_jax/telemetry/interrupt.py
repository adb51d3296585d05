"""Handles SIGINT and SIGTERM: the first signal requests a checkpoint after the step, the second stops at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context manager that records signals: `if interrupt.requested:` save and return. Main thread only.

    The second signal raises KeyboardInterrupt in the main thread, so `with` and `finally` blocks still stop child
    processes; it also restores the previous handlers, so a third signal kills. On several hosts, decide by
    `parallel.distributed.any_process(interrupt.requested)`: a signal may reach only one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            self._restore()
            raise KeyboardInterrupt(f"second signal ({signal.Signals(number).name})")
        self.requested = True
        self.signal_name = signal.Signals(number).name
        print(
            f"\n{self.signal_name}: this step is finished and saved first; once more stops at once",
            file=sys.stderr,
            flush=True,
        )
