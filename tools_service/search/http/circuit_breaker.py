"""Implements a circuit breaker, which stops calls to a provider that keeps failing.

A closed circuit passes every call. After a number of consecutive failures it opens and rejects calls at once; after
a pause it is half-open and passes a single trial, whose outcome closes or reopens it. (Existing libraries count a
cancelled call as an outcome, or pass all callers after the pause.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tools_service.common import logs
from tools_service.search.provider import BadQuery, RequestRejected, SearchError


class CircuitOpen(SearchError):
    """The circuit is open: the provider failed repeatedly and is not called."""


class CircuitBreaker:
    """Guards the calls to one provider, within one event loop."""

    def __init__(self, name: str, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic):
        """Opens after `failures` consecutive failures, for `pause_s` seconds."""
        self._name, self._failure_threshold, self._pause_s, self._clock = name, failures, pause_s, clock
        self._failures = 0
        self._opened_at: float | None = None
        self._trial_running = False

    @property
    def state(self) -> str:
        """Returns `closed`, `open`, or `half-open` if the next call is a trial."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._trial_running or self._clock() < self._opened_at + self._pause_s else "half-open"

    def check(self) -> None:
        """Raises CircuitOpen if `guard` would."""
        if self.state == "open":
            raise CircuitOpen(f"{self._name} failed {self._failures} times in a row and is left alone for a while")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Wraps one call and records its outcome.

        A SearchError counts as a failure, except BadQuery and RequestRejected, which show that the provider is
        available. Any other exception, such as a cancellation, does not count.

        Raises:
            CircuitOpen: the circuit is open; the call is not made.
        """
        self.check()
        trial = self._trial_running = self._opened_at is not None
        try:
            yield
        except (BadQuery, RequestRejected):
            self._close()
            raise
        except SearchError:
            self._failures += 1
            if trial or self._failures >= self._failure_threshold:
                self._opened_at = self._clock()
                logs.event("circuit opened", logging.WARNING, provider=self._name, failures=self._failures)
            raise
        else:
            self._close()
        finally:
            if trial:
                self._trial_running = False

    def _close(self) -> None:
        if self._opened_at is not None:
            logs.event("circuit closed", provider=self._name)
        self._failures, self._opened_at = 0, None
