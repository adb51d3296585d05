"""How many cells run at once: few, so that wall-clock time-outs are fair; sleepers make room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Lanes:
    """A fast lane of ``fast`` cells. A cell still running after ``patience_s`` moves to the slow lane, if
    one of its ``slow`` places is free, so that long or hung cells do not hold up short ones."""

    def __init__(self, fast: int, slow: int, patience_s: float = 0.5):
        self._fast, self._slow, self._patience_s = asyncio.Semaphore(fast), slow, patience_s
        self.waiting = 0  # cells that wait for a place
        self.running = 0

    @contextlib.asynccontextmanager
    async def enter(self) -> AsyncIterator[Lane]:
        """Waits for a place in the fast lane, first come first served."""
        self.waiting += 1
        try:
            await self._fast.acquire()
        finally:
            self.waiting -= 1
        lane = Lane(self)
        self.running += 1
        try:
            yield lane
        finally:
            self.running -= 1
            lane.leave()


class Lane:
    """The place of one cell."""

    def __init__(self, lanes: Lanes):
        self._lanes = lanes
        self._timer: asyncio.TimerHandle | None = None
        self._slow = False

    def running(self) -> None:
        """The cell starts now."""
        self._timer = asyncio.get_running_loop().call_later(self._lanes._patience_s, self._move)

    def _move(self) -> None:
        if self._lanes._slow > 0:
            self._lanes._slow -= 1
            self._slow = True
            self._lanes._fast.release()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._slow:
            self._lanes._slow += 1
        else:
            self._lanes._fast.release()
