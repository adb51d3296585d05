"""Adapts the number of concurrent requests to what an endpoint accepts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class AdaptiveLimit:
    """A limit of concurrent requests that halves when the endpoint is overloaded and grows by one per round of successes.

    Additive increase and multiplicative decrease (AIMD), from `maximum` downward and never above it. Requests that were
    sent before the last decrease do not lower the limit again: they report the same overload. Thread-safe.
    """

    def __init__(self, maximum: int):
        if maximum < 1:
            raise ValueError(f"{maximum} concurrent requests: at least 1 is needed")
        self.maximum = maximum
        self._limit = float(maximum)
        self._running = 0
        self._round = 0  # number of decreases so far
        self._paused_until = 0.0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """The number of requests that may run now."""
        return max(1, int(self._limit))

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Waits for a free slot, and for the end of a pause; yields the round, which `overloaded` takes."""
        with self._changed:
            while not self._closed:
                pause = self._paused_until - time.monotonic()
                if self._running < self.limit and pause <= 0:
                    break
                self._changed.wait(pause if pause > 0 else None)
            self._running += 1
            number = self._round
        try:
            yield number
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Notes a success: after as many as the limit, one more request may run."""
        with self._changed:
            self._limit = min(float(self.maximum), self._limit + 1 / self._limit)
            self._changed.notify_all()

    def overloaded(self, number: int, pause_s: float = 0.0) -> None:
        """Notes that the endpoint refused a request of round `number` because of its load, and pauses all for `pause_s`."""
        with self._changed:
            if number == self._round:
                self._limit = max(1.0, self._limit / 2)
                self._round += 1
            self._paused_until = max(self._paused_until, time.monotonic() + pause_s)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all waiting: from now on a slot is free at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
