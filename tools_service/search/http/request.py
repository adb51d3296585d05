"""What a provider is asked over HTTP, and how patiently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, repr=False)  # it holds a key
class Request:
    method: str
    url: str
    params: Mapping[str, str | int] | None = None
    headers: Mapping[str, str] | None = None
    json: Any = None


@dataclass(frozen=True)
class Policy:
    """How one provider is treated."""

    timeout_s: float = 8.0  # one attempt, until the last byte
    budget_s: float = 15.0  # one search: attempts, queueing and waits together
    attempts: int = 3
    rate: float = 5.0  # requests a second, in bursts of one second's worth
    concurrent: int = 16
    reply_bytes: int = 4 << 20  # after decompression
    failures: int = 5  # in a row: then the provider is left alone
    pause_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} {value:g} must be above 0")
