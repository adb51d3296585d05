"""A circuit breaker: a provider that keeps failing is left alone for a while.

Closed, it lets everything pass. After so many failures in a row it opens and refuses at once; after a pause it lets a
single trial through, whose outcome closes it or opens it again. (The libraries of this name count a cancelled call as
an outcome, or let every caller in after the pause.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tools_service.common import logs
from tools_service.search.provider import BadQuery, Rejected, SearchError


class CircuitOpen(SearchError):
    """The provider failed too often and is not asked now."""


class CircuitBreaker:
    def __init__(self, name: str, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic):
        """Opens after ``failures`` in a row, for ``pause_s`` seconds. For one event loop."""
        self._name, self._most, self._pause_s, self._clock = name, failures, pause_s, clock
        self._failures = 0
        self._opened_at: float | None = None
        self._on_trial = False

    @property
    def state(self) -> str:
        """``closed``, ``open``, or ``half-open`` when the next call is a trial."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._on_trial or self._clock() < self._opened_at + self._pause_s else "half-open"

    def check(self) -> None:
        """Raises CircuitOpen where ``guard`` would."""
        if self.state == "open":
            raise CircuitOpen(f"{self._name} failed {self._failures} times in a row and is left alone for a while")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around one call. A SearchError is a failure, but after BadQuery and Rejected the provider is known to be there;
        a cancelled call says nothing.

        Raises CircuitOpen instead of calling.
        """
        self.check()
        trial = self._on_trial = self._opened_at is not None
        try:
            yield
        except (BadQuery, Rejected):
            self._close()
            raise
        except SearchError:
            self._failures += 1
            if trial or self._failures >= self._most:
                self._opened_at = self._clock()
                logs.event("circuit opened", logging.WARNING, provider=self._name, failures=self._failures)
            raise
        else:
            self._close()
        finally:
            if trial:
                self._on_trial = False

    def _close(self) -> None:
        if self._opened_at is not None:
            logs.event("circuit closed", provider=self._name)
        self._failures, self._opened_at = 0, None
