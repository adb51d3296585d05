"""Defines the HTTP request to a search provider and its retry policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, repr=False)  # not shown: it holds an API key
class HttpRequest:
    """One request to a search provider."""

    method: str
    url: str
    params: Mapping[str, str | int] | None = None
    headers: Mapping[str, str] | None = None
    json: Any = None


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts, retries, rate limit and circuit breaker settings for one provider."""

    timeout_s: float = 8.0  # time limit of one attempt, to its last byte
    budget_s: float = 15.0  # time limit of one search: attempts, queueing and waits together
    attempts: int = 3  # attempts per search
    rate: float = 5.0  # requests per second; bursts may hold one second's worth
    max_concurrent: int = 16  # concurrent requests
    reply_bytes: int = 4 << 20  # largest reply, after decompression
    failures: int = 5  # consecutive failures that open the circuit
    pause_s: float = 30.0  # time until an open circuit lets a trial through

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} {value:g} must be above 0")
