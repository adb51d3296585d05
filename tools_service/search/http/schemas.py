"""What the providers answer: strict schemas, by field the parts that become results.

Fields that are not used are ignored, those that are must have their type. A schema requires what tells its provider's
reply from any other JSON, so that an error page in JSON is never taken for "no results". Sources: the providers'
public API references (serper.dev, serpapi.com, api-dashboard.search.brave.com, docs.tavily.com, docs.searxng.org) and
the retrieval server of Search-R1.
"""

from __future__ import annotations

import html
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tools_service.search.provider import Item, SearchError

_TITLE_CHARS, _SNIPPET_CHARS, _DATE_CHARS, _URL_CHARS = 300, 2000, 60, 2048
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]+")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


def item(title: str, url: str = "", snippet: str | None = "", date: str | None = "", score: float = 0.0) -> Item:
    """A result of cleaned text: no control characters, clipped; the URL is http or https, or empty."""
    return Item(
        _clean(title, _TITLE_CHARS), web_url(url), _clean(snippet or "", _SNIPPET_CHARS), _clean(date or "", _DATE_CHARS),
        score=score,
    )  # fmt: skip


def web_url(url: str) -> str:
    """``url`` where it is a plain http or https address, else an empty string."""
    fit = len(url) <= _URL_CHARS and url.isprintable() and " " not in url
    return url if fit and url.lower().startswith(("http://", "https://")) else ""


def _clean(text: str, most: int) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= most else text[: most - 1] + "…"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class _SerperItem(_Part):
    title: str
    link: str
    snippet: str | None = None
    date: str | None = None


class SerperReply(_Part):
    searchParameters: dict[str, Any]
    organic: list[_SerperItem] = []

    def items(self) -> list[Item]:
        return [item(r.title, r.link, r.snippet, r.date) for r in self.organic]


class _SerpApiStatus(_Part):
    status: Literal["Success", "Error", "Processing", "Queued"]


class _SerpApiItem(_Part):
    title: str
    link: str
    snippet: str | None = None
    date: str | None = None


class _SerpApiReply(_Part):
    search_metadata: _SerpApiStatus

    def check(self) -> None:
        # Without results the status is "Success" beside an "error" that says so.
        if self.search_metadata.status != "Success":
            raise SearchError(f"serpapi reports status {self.search_metadata.status}")


class SerpApiReply(_SerpApiReply):
    organic_results: list[_SerpApiItem] = []

    def items(self) -> list[Item]:
        self.check()
        return [item(r.title, r.link, r.snippet, r.date) for r in self.organic_results]


class _BraveItem(_Part):
    title: str
    url: str
    description: str | None = None
    age: str | None = None


class _BraveWeb(_Part):
    results: list[_BraveItem]


class BraveReply(_Part):
    type: Literal["search"]
    web: _BraveWeb | None = None  # absent without results

    def items(self) -> list[Item]:
        return [
            item(_unmarked(r.title), r.url, _unmarked(r.description or ""), r.age)
            for r in (self.web.results if self.web else ())
        ]


def _unmarked(text: str) -> str:
    """Brave marks matches with tags and writes entities."""
    return html.unescape(_TAG.sub("", text))


class _TavilyItem(_Part):
    title: str
    url: str
    content: str
    score: float = 0.0
    published_date: str | None = None


class TavilyReply(_Part):
    query: str
    results: list[_TavilyItem]

    def items(self) -> list[Item]:
        return [item(r.title, r.url, r.content, r.published_date, r.score) for r in self.results]


class _SearxngItem(_Part):
    title: str
    url: str
    content: str | None = None
    publishedDate: str | None = None
    score: float = 0.0


class SearxngReply(_Part):
    query: str
    results: list[_SearxngItem]
    unresponsive_engines: list[Any] = []

    def items(self) -> list[Item]:
        if not self.results and self.unresponsive_engines:
            raise SearchError(f"searxng: none of its engines answered ({len(self.unresponsive_engines)} failed)")
        return [item(r.title, r.url, r.content, r.publishedDate, r.score) for r in self.results]


class _Document(_Part):
    contents: str
    url: str | None = None

    def item(self, score: float) -> Item:
        """``contents`` is a line of title, in quotes as a rule, and the text."""
        title, _, text = self.contents.partition("\n")
        return item(title.strip().strip('"'), self.url or "", text, score=score)


class _Scored(_Part):
    document: _Document
    score: float

    def item(self) -> Item:
        return self.document.item(self.score)


class RetrieverReply(_Part):
    result: list[list[_Scored]] = Field(min_length=1, max_length=1)  # one list a query

    def items(self) -> list[Item]:
        return [found.item() for found in self.result[0]]


class _LensItem(_Part):
    title: str
    link: str
    thumbnail: str | None = None
    thumbnailUrl: str | None = None
    imageUrl: str | None = None
    source: str | None = None

    def found(self) -> tuple[Item, str]:
        """The result, and where its picture lies."""
        return item(self.title, self.link, self.source), self.thumbnail or self.thumbnailUrl or self.imageUrl or ""


class SerpApiLensReply(_SerpApiReply):
    visual_matches: list[_LensItem] = []

    def matches(self) -> list[tuple[Item, str]]:
        self.check()
        return [match.found() for match in self.visual_matches]


class SerperLensReply(_Part):
    searchParameters: dict[str, Any] | None = None
    organic: list[_LensItem] | None = None

    @model_validator(mode="after")
    def _is_a_reply(self) -> SerperLensReply:
        if self.searchParameters is None and self.organic is None:
            raise ValueError("neither searchParameters nor organic")
        return self

    def matches(self) -> list[tuple[Item, str]]:
        return [match.found() for match in self.organic or ()]
