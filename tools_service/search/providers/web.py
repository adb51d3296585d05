"""Searches text over HTTP: Serper, SerpApi, Brave, Tavily, SearXNG, and the retrieval server of Search-R1.

A provider is an entry of `APIS`: its URL, how to build a request and the schema of its reply. All else is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from tools_service.search.http import schemas
from tools_service.search.http.request import HttpRequest
from tools_service.search.provider import BadQuery, SearchHit

if TYPE_CHECKING:  # the command line imports APIS only; this keeps its start fast
    from tools_service.search.http.transport import Transport


@dataclass(frozen=True)
class Locale:
    """Country and language of results, as two-letter codes."""

    country: str = "us"
    language: str = "en"


class TextReply(Protocol):
    """A parsed reply of a text search provider."""

    def items(self) -> list[SearchHit]:
        """Returns the results, best first. Raises SearchError if the reply reports a failure."""


@dataclass(frozen=True)
class TextSearchApi:
    """An API for text search. `build_request` takes URL, query, number of results, locale and key."""

    build_request: Callable[[str, str, int, Locale, str], HttpRequest]
    reply_schema: type[Any]
    url: str = ""  # empty: there is no public server, the operator gives the URL
    key_variable: str = ""  # environment variable of its key; empty: it needs none
    auth_error_hint: str = "check its key and plan"  # advice for status 401, 402 or 403
    rate: float = 5.0  # default rate limit, requests per second
    max_results: int = 100
    max_chars: int = 4096
    max_words: int = 4096


def _serper(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    body = {"q": query, "num": k, "gl": locale.country, "hl": locale.language}
    return HttpRequest("POST", url, json=body, headers={"X-API-KEY": key})


def _serpapi(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    params: dict[str, str | int] = {
        "engine": "google",
        "q": query,
        "num": k,
        "gl": locale.country,
        "hl": locale.language,
        "api_key": key,
    }
    return HttpRequest("GET", url, params=params)


def _brave(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    params: dict[str, str | int] = {
        "q": query,
        "count": k,
        "country": locale.country.upper(),
        "search_lang": locale.language,
        "text_decorations": "false",
    }
    return HttpRequest("GET", url, params=params, headers={"X-Subscription-Token": key})


def _tavily(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    # Tavily has no language and takes country names, not codes: the locale is not sent.
    return HttpRequest("POST", url, json={"query": query, "max_results": k}, headers={"Authorization": f"Bearer {key}"})


def _searxng(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    return HttpRequest("GET", url, params={"q": query, "format": "json", "language": locale.language})


def _retriever(url: str, query: str, k: int, locale: Locale, key: str) -> HttpRequest:
    return HttpRequest("POST", url, json={"queries": [query], "topk": k, "return_scores": True})


APIS = {
    "serper": TextSearchApi(_serper, schemas.SerperReply, "https://google.serper.dev/search", "SERPER_API_KEY", rate=20),
    "serpapi": TextSearchApi(_serpapi, schemas.SerpApiReply, "https://serpapi.com/search.json", "SERPAPI_API_KEY"),
    "brave": TextSearchApi(
        _brave, schemas.BraveReply, "https://api.search.brave.com/res/v1/web/search", "BRAVE_API_KEY",
        rate=1, max_results=20, max_chars=400, max_words=50,
    ),
    "tavily": TextSearchApi(
        _tavily, schemas.TavilyReply, "https://api.tavily.com/search", "TAVILY_API_KEY", rate=1.5, max_results=20, max_chars=400,
    ),
    "searxng": TextSearchApi(
        _searxng, schemas.SearxngReply, auth_error_hint="its settings must list json under search.formats, and let this service in",
    ),
    "retriever": TextSearchApi(_retriever, schemas.RetrieverReply, auth_error_hint="it must let this service in", rate=100),
}  # fmt: skip


class WebSearch:
    """Searches text through one of `APIS`."""

    def __init__(self, name: str, transport: Transport, key: SecretStr, url: str = "", locale: Locale | None = None):
        """Uses the API `name` of `APIS`, at `url` if given."""
        self.name, self.transport = name, transport
        self._api, self._key, self._locale = APIS[name], key, locale or Locale()
        self._url = url or self._api.url

    async def search(self, query: str, k: int) -> list[SearchHit]:
        api, key = self._api, self._key.get_secret_value()
        if not query.strip():
            raise BadQuery("the query is empty")
        if len(query) > api.max_chars or len(query.split()) > api.max_words:
            raise BadQuery(
                f"the query has {len(query)} characters and {len(query.split())} words; "
                f"{self.name} takes {api.max_chars} and {api.max_words} at most"
            )
        reply = await self.transport.fetch(
            api.build_request(self._url, query, min(k, api.max_results), self._locale, key), api.reply_schema
        )
        return [redact(key, item) for item in reply.items()[:k]]


def redact(key: str, item: SearchHit) -> SearchHit:
    """Removes the API key from the texts of a result, in case the provider echoed it."""
    if not key:
        return item
    texts: dict[str, Any] = {
        name: value.replace(key, "…") for name, value in vars(item).items() if isinstance(value, str)
    }
    return dataclasses.replace(item, **texts)
