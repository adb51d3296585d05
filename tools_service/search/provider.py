"""The interface of search providers.

A provider is asynchronous so that remote ones plug in beside the embedded ones, which work in threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class SearchError(Exception):
    """The search could not be done; the text may be shown to the caller."""


class BadQuery(SearchError):
    """The query itself is wrong."""


class Rejected(SearchError):
    """The provider is there and does not take this one request."""


@dataclass(frozen=True)
class Item:
    """One search result."""

    title: str
    url: str = ""
    snippet: str = ""
    date: str = ""
    thumbnail: bytes = b""  # PNG
    score: float = 0.0


class TextProvider(Protocol):
    name: str

    async def search(self, query: str, k: int) -> list[Item]:
        """The k best documents, best first. Raises SearchError."""


class ImageProvider(Protocol):
    name: str

    async def search(self, image: bytes, k: int) -> list[Item]:
        """The k most similar pictures, best first. ``image`` is an encoded picture. Raises SearchError."""
