"""Defines strict schemas of the providers' replies, limited to the fields that become results.

Unused fields are ignored; used fields must have their type. Each schema requires a field that distinguishes its
provider's replies from other JSON, so that a JSON error page is never parsed as "no results". Sources: the
providers' public API references (serper.dev, serpapi.com, api-dashboard.search.brave.com, docs.tavily.com,
docs.searxng.org) and the retrieval server of Search-R1.
"""

from __future__ import annotations

import html
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tools_service.search.provider import SearchError, SearchHit

_TITLE_CHARS, _SNIPPET_CHARS, _DATE_CHARS, _URL_CHARS = 300, 2000, 60, 2048
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]+")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


def clean_hit(
    title: str, url: str = "", snippet: str | None = "", date: str | None = "", score: float = 0.0
) -> SearchHit:
    """Builds a result from sanitized text: no control characters, clipped; the URL is http or https, or empty."""
    return SearchHit(
        _clean(title, _TITLE_CHARS), web_url(url), _clean(snippet or "", _SNIPPET_CHARS), _clean(date or "", _DATE_CHARS),
        score=score,
    )  # fmt: skip


def web_url(url: str) -> str:
    """Returns `url` if it is a plain http or https address, else an empty string."""
    valid = len(url) <= _URL_CHARS and url.isprintable() and " " not in url
    return url if valid and url.lower().startswith(("http://", "https://")) else ""


def _clean(text: str, max_chars: int) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


class _ReplyPart(BaseModel):
    """Base class of strict, immutable parts of a reply."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class _SerperItem(_ReplyPart):
    title: str
    link: str
    snippet: str | None = None
    date: str | None = None


class SerperReply(_ReplyPart):
    searchParameters: dict[str, Any]
    organic: list[_SerperItem] = []

    def items(self) -> list[SearchHit]:
        return [clean_hit(r.title, r.link, r.snippet, r.date) for r in self.organic]


class _SerpApiStatus(_ReplyPart):
    status: Literal["Success", "Error", "Processing", "Queued"]


class _SerpApiItem(_ReplyPart):
    title: str
    link: str
    snippet: str | None = None
    date: str | None = None


class _SerpApiReply(_ReplyPart):
    search_metadata: _SerpApiStatus

    def check(self) -> None:
        # A search without results has status "Success" and an "error" text, so "error" is not checked.
        if self.search_metadata.status != "Success":
            raise SearchError(f"serpapi reports status {self.search_metadata.status}")


class SerpApiReply(_SerpApiReply):
    organic_results: list[_SerpApiItem] = []

    def items(self) -> list[SearchHit]:
        self.check()
        return [clean_hit(r.title, r.link, r.snippet, r.date) for r in self.organic_results]


class _BraveItem(_ReplyPart):
    title: str
    url: str
    description: str | None = None
    age: str | None = None


class _BraveWeb(_ReplyPart):
    results: list[_BraveItem]


class BraveReply(_ReplyPart):
    type: Literal["search"]
    web: _BraveWeb | None = None  # absent without results

    def items(self) -> list[SearchHit]:
        return [
            clean_hit(_strip_markup(r.title), r.url, _strip_markup(r.description or ""), r.age)
            for r in (self.web.results if self.web else ())
        ]


def _strip_markup(text: str) -> str:
    """Removes the tags with which Brave marks matches, and decodes HTML entities."""
    return html.unescape(_TAG.sub("", text))


class _TavilyItem(_ReplyPart):
    title: str
    url: str
    content: str
    score: float = 0.0
    published_date: str | None = None


class TavilyReply(_ReplyPart):
    query: str
    results: list[_TavilyItem]

    def items(self) -> list[SearchHit]:
        return [clean_hit(r.title, r.url, r.content, r.published_date, r.score) for r in self.results]


class _SearxngItem(_ReplyPart):
    title: str
    url: str
    content: str | None = None
    publishedDate: str | None = None
    score: float = 0.0


class SearxngReply(_ReplyPart):
    query: str
    results: list[_SearxngItem]
    unresponsive_engines: list[Any] = []

    def items(self) -> list[SearchHit]:
        if not self.results and self.unresponsive_engines:
            raise SearchError(f"searxng: none of its engines answered ({len(self.unresponsive_engines)} failed)")
        return [clean_hit(r.title, r.url, r.content, r.publishedDate, r.score) for r in self.results]


class _Document(_ReplyPart):
    contents: str
    url: str | None = None

    def to_hit(self, score: float) -> SearchHit:
        """Splits `contents` into its first line, the (usually quoted) title, and the text."""
        title, _, text = self.contents.partition("\n")
        return clean_hit(title.strip().strip('"'), self.url or "", text, score=score)


class _Scored(_ReplyPart):
    document: _Document
    score: float

    def to_hit(self) -> SearchHit:
        return self.document.to_hit(self.score)


class RetrieverReply(_ReplyPart):
    result: list[list[_Scored]] = Field(min_length=1, max_length=1)  # one list per query

    def items(self) -> list[SearchHit]:
        return [found.to_hit() for found in self.result[0]]


class _LensItem(_ReplyPart):
    title: str
    link: str
    thumbnail: str | None = None
    thumbnailUrl: str | None = None
    imageUrl: str | None = None
    source: str | None = None

    def to_hit_and_image_url(self) -> tuple[SearchHit, str]:
        """Returns the result and the URL of its image, empty without one."""
        return clean_hit(self.title, self.link, self.source), self.thumbnail or self.thumbnailUrl or self.imageUrl or ""


class SerpApiLensReply(_SerpApiReply):
    visual_matches: list[_LensItem] = []

    def matches(self) -> list[tuple[SearchHit, str]]:
        self.check()
        return [match.to_hit_and_image_url() for match in self.visual_matches]


class SerperLensReply(_ReplyPart):
    searchParameters: dict[str, Any] | None = None
    organic: list[_LensItem] | None = None

    @model_validator(mode="after")
    def _is_a_reply(self) -> SerperLensReply:
        if self.searchParameters is None and self.organic is None:
            raise ValueError("neither searchParameters nor organic")
        return self

    def matches(self) -> list[tuple[SearchHit, str]]:
        return [match.to_hit_and_image_url() for match in self.organic or ()]
