"""Spreads requests over time, so that an endpoint's limits per minute are not exceeded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 5.0  # seconds' worth of requests and tokens that may be sent at once
FIRST_TOKENS = 1_000.0  # assumed tokens of a request before the first reply


class RateLimit:
    """Limits of requests and of tokens per minute, by the generic cell rate algorithm (GCRA). Thread-safe.

    A request reserves the mean number of tokens of earlier requests and pays the difference once its reply tells the
    number.

    Args:
        requests_per_minute, tokens_per_minute: 0: no limit.
        clock: seconds, never decreasing.

    Raises:
        ValueError: a limit is negative.
    """

    def __init__(
        self,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        if requests_per_minute < 0 or tokens_per_minute < 0:
            raise ValueError("limits per minute are 0 or more")
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0  # seconds that a request costs
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._requests_until = self._tokens_until = clock()  # times up to which the limits are used
        self._used, self._replies = 0, 0

    def reserve(self) -> tuple[float, float]:
        """Reserves one request; returns the seconds to wait before it is sent, and the tokens to give to `settle`."""
        with self._lock:
            now = self._clock()
            tokens = self._used / self._replies if self._replies else FIRST_TOKENS
            self._requests_until = max(self._requests_until, now) + self._request_s
            self._tokens_until = max(self._tokens_until, now) + tokens * self._token_s
            wait = max(
                self._requests_until - now - max(BURST_S, self._request_s),
                self._tokens_until - now - max(BURST_S, tokens * self._token_s),
            )
            return max(0.0, wait), tokens

    def settle(self, reserved: float, used: int) -> None:
        """Replaces reserved tokens by the number that a reply reports; a failed request costs what it reserved."""
        with self._lock:
            self._used += used
            self._replies += 1
            self._tokens_until += (used - reserved) * self._token_s
