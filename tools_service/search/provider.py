"""Defines the interface of search providers.

Providers are asynchronous, so that remote providers (HTTP) and embedded ones (worker threads) are interchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class SearchError(Exception):
    """The search failed; the message may be shown to the caller."""


class BadQuery(SearchError):
    """The query is invalid."""


class RequestRejected(SearchError):
    """The provider is available but rejected this request."""


@dataclass(frozen=True)
class SearchHit:
    """One search result."""

    title: str
    url: str = ""
    snippet: str = ""
    date: str = ""
    thumbnail: bytes = b""  # PNG
    score: float = 0.0


class SearchProvider(Protocol):
    """A provider of either kind: its queries are strings or encoded images."""

    name: str

    async def search(self, query: Any, k: int, /) -> list[SearchHit]:
        """Returns the k best results, best first. Raises SearchError."""


class TextProvider(Protocol):
    name: str

    async def search(self, query: str, k: int) -> list[SearchHit]:
        """Returns the k best documents, best first. Raises SearchError."""


class ImageProvider(Protocol):
    name: str

    async def search(self, image: bytes, k: int) -> list[SearchHit]:
        """Returns the k images most similar to the encoded `image`, best first. Raises SearchError."""
