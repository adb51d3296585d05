"""Measures for how long a service has given no result while requests were open."""

from __future__ import annotations

import threading
import time


class SuccessClock:
    """Counts from the first request that failed since the last success; pauses without requests do not count. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing_since: float | None = None  # start of the first request without a result
        self._last_success = -float("inf")

    def silent_s(self, started: float) -> float:
        """Returns the seconds without a success while requests were open; `started`: of a request that is open now."""
        with self._lock:
            first = min(started, self._failing_since if self._failing_since is not None else started)
            return time.monotonic() - max(first, self._last_success)

    def succeeded(self) -> None:
        """Notes a success."""
        with self._lock:
            self._failing_since, self._last_success = None, time.monotonic()

    def failed(self, started: float) -> float:
        """Notes that a request has failed for good; returns `silent_s`."""
        silent_s = self.silent_s(started)
        with self._lock:
            self._failing_since = started if self._failing_since is None else min(started, self._failing_since)
        return silent_s
