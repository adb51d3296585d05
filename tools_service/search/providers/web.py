"""Text search over HTTP: Serper, SerpApi, Brave, Tavily, SearXNG, and a retriever as Search-R1 starts one.

A provider is a row of ``APIS``: where it is, how it is asked, what it answers. The rest is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import SecretStr

from tools_service.search.http import schemas
from tools_service.search.http.request import Request
from tools_service.search.provider import BadQuery, Item

if TYPE_CHECKING:  # the command line reads APIS alone, and quickly
    from tools_service.search.http.transport import Transport


@dataclass(frozen=True)
class Locale:
    """Whose results: two-letter codes of a country and of a language."""

    country: str = "us"
    language: str = "en"


class TextReply(Protocol):
    def items(self) -> list[Item]:
        """The results, best first. Raises SearchError when the reply says that the search failed."""


@dataclass(frozen=True)
class Api:
    """One provider of text search. ``ask`` gets URL, query, number of results, locale and key."""

    ask: Callable[[str, str, int, Locale, str], Request]
    reply: type
    url: str = ""  # empty: the operator's own, to be given
    key: str = ""  # environment variable of its key; empty: it takes none
    if_refused: str = "check its key and plan"  # what to do about status 401, 402 or 403
    rate: float = 5.0  # requests a second unless told otherwise
    most_results: int = 100
    most_chars: int = 4096
    most_words: int = 4096


def _serper(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    body = {"q": query, "num": k, "gl": locale.country, "hl": locale.language}
    return Request("POST", url, json=body, headers={"X-API-KEY": key})


def _serpapi(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    asked = {"engine": "google", "q": query, "num": k, "gl": locale.country, "hl": locale.language, "api_key": key}
    return Request("GET", url, params=asked)


def _brave(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    asked = {
        "q": query,
        "count": k,
        "country": locale.country.upper(),
        "search_lang": locale.language,
        "text_decorations": "false",
    }
    return Request("GET", url, params=asked, headers={"X-Subscription-Token": key})


def _tavily(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    # It has no language, and names countries in words: the locale is not passed on.
    return Request("POST", url, json={"query": query, "max_results": k}, headers={"Authorization": f"Bearer {key}"})


def _searxng(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    return Request("GET", url, params={"q": query, "format": "json", "language": locale.language})


def _retriever(url: str, query: str, k: int, locale: Locale, key: str) -> Request:
    return Request("POST", url, json={"queries": [query], "topk": k, "return_scores": True})


APIS = {
    "serper": Api(_serper, schemas.SerperReply, "https://google.serper.dev/search", "SERPER_API_KEY", rate=20),
    "serpapi": Api(_serpapi, schemas.SerpApiReply, "https://serpapi.com/search.json", "SERPAPI_API_KEY"),
    "brave": Api(
        _brave, schemas.BraveReply, "https://api.search.brave.com/res/v1/web/search", "BRAVE_API_KEY",
        rate=1, most_results=20, most_chars=400, most_words=50,
    ),
    "tavily": Api(
        _tavily, schemas.TavilyReply, "https://api.tavily.com/search", "TAVILY_API_KEY", rate=1.5, most_results=20, most_chars=400,
    ),
    "searxng": Api(
        _searxng, schemas.SearxngReply, if_refused="its settings must list json under search.formats, and let this service in",
    ),
    "retriever": Api(_retriever, schemas.RetrieverReply, if_refused="it must let this service in", rate=100),
}  # fmt: skip


class WebSearch:
    """A text provider behind HTTP."""

    def __init__(self, name: str, transport: Transport, key: SecretStr, url: str = "", locale: Locale | None = None):
        """``name`` is one of ``APIS``; ``url`` replaces its own."""
        self.name, self.transport = name, transport
        self._api, self._key, self._locale = APIS[name], key, locale or Locale()
        self._url = url or self._api.url

    async def search(self, query: str, k: int) -> list[Item]:
        api, key = self._api, self._key.get_secret_value()
        if not query.strip():
            raise BadQuery("the query is empty")
        if len(query) > api.most_chars or len(query.split()) > api.most_words:
            raise BadQuery(
                f"the query has {len(query)} characters and {len(query.split())} words; "
                f"{self.name} takes {api.most_chars} and {api.most_words} at most"
            )
        reply = await self.transport.ask(
            api.ask(self._url, query, min(k, api.most_results), self._locale, key), api.reply
        )
        return [without(key, item) for item in reply.items()[:k]]


def without(key: str, item: Item) -> Item:
    """The item with the key blotted out, should a provider have echoed it."""
    if not key:
        return item
    texts = {name: value.replace(key, "…") for name, value in vars(item).items() if isinstance(value, str)}
    return dataclasses.replace(item, **texts)
