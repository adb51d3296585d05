"""The interface of search providers, and the table of those that a service runs with.

A provider is asynchronous so that remote ones plug in beside the embedded ones, which work in threads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from tools_service.proto import tools_pb2 as pb


class SearchError(Exception):
    """The search could not be done; the text may be shown to the caller."""


class BadQuery(SearchError):
    """The query itself is wrong."""


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


@dataclass(frozen=True)
class Providers:
    """What searches go to."""

    text: TextProvider | None = None
    image: ImageProvider | None = None

    @classmethod
    def open(cls, text_index: str, image_index: str) -> Providers:
        """The embedded providers for the given indexes; an empty path means none. Raises ValueError."""
        from tools_service.search.pictures import PictureIndex
        from tools_service.search.text import TextIndex

        return cls(
            TextIndex.open(text_index) if text_index else None, PictureIndex.open(image_index) if image_index else None
        )

    def names(self) -> list[str]:
        return [p.name for p in (self.text, self.image) if p is not None]

    async def search(self, request: pb.SearchRequest) -> pb.Result:
        """Answers one request; what goes wrong is a status."""
        kind = request.WhichOneof("query")
        provider = self.text if kind == "text" else self.image
        result = pb.Result(request_id=request.request_id, status=pb.OK)
        if provider is None:
            result.status, result.message = pb.REFUSED, f"this service has no {kind} index"
            return result
        result.provider = provider.name
        started = time.monotonic()
        try:
            items = await provider.search(request.text.query if kind == "text" else request.image.image, request.k)
        except BadQuery as error:
            result.status, result.message = pb.REFUSED, str(error)
            return result
        except SearchError as error:
            result.status, result.message = pb.UNAVAILABLE, str(error)
            return result
        result.wall_ms = (time.monotonic() - started) * 1e3
        for item in items:
            result.items.add(
                title=item.title,
                url=item.url,
                snippet=item.snippet,
                date=item.date,
                thumbnail=item.thumbnail,
                score=item.score,
            )
        return result
