"""Ctrl-C and SIGTERM: the first asks for a checkpoint at the end of the step, the second stops at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """``with Interrupt() as interrupt: ... if interrupt.requested: save and leave``. Main thread only.

    The second signal raises KeyboardInterrupt in the main thread, so ``with`` and ``finally`` blocks still end the
    processes that were started; from then on the signals have the meaning they had before, so a third one kills.
    On several hosts decide by ``parallel.distributed.any_process(interrupt.requested)``: a signal may reach only one.
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
