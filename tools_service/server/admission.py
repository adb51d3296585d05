"""Admission control: bounds the number of cells that run at once, so that wall-clock time-outs are fair."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

DEMOTE_AFTER_S = 0.5


class AdmissionController:
    """Admits cells first come, first served, at most `max_running` at once.

    A cell that still runs after `demote_after_s` frees its slot for the next cell if fewer than
    `max_long_running` cells have been demoted already: long or hung cells do not hold up short ones.
    """

    def __init__(self, max_running: int, max_long_running: int, demote_after_s: float = DEMOTE_AFTER_S):
        self._slots = asyncio.Semaphore(max_running)
        self._free_long_running = max_long_running
        self._demote_after_s = demote_after_s
        self.waiting = 0  # cells without a slot yet
        self.running = 0

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[Slot]:
        """Waits for a slot, and frees it when the context ends."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        slot = Slot(self)
        self.running += 1
        try:
            yield slot
        finally:
            self.running -= 1
            slot.release()


class Slot:
    """The admission of one cell."""

    def __init__(self, controller: AdmissionController):
        self._controller = controller
        self._timer: asyncio.TimerHandle | None = None
        self._demoted = False

    def start_timer(self) -> None:
        """Counts the cell's running time from now; until then it may still wait for a process."""
        self._timer = asyncio.get_running_loop().call_later(self._controller._demote_after_s, self._demote)

    def _demote(self) -> None:
        if self._controller._free_long_running > 0:
            self._controller._free_long_running -= 1
            self._demoted = True
            self._controller._slots.release()

    def release(self) -> None:
        """Frees the slot, or the long-running place of a demoted cell."""
        if self._timer is not None:
            self._timer.cancel()
        if self._demoted:
            self._controller._free_long_running += 1
        else:
            self._controller._slots.release()
