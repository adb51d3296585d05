"""Tries search providers in order of preference; an answer of a fallback provider is marked degraded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools_service.search.provider import BadQuery, SearchError, SearchHit, SearchProvider
from tools_service.search.recording_store import CachedProvider


@dataclass(frozen=True)
class SearchAnswer:
    """The results of one search and the provider that returned them."""

    items: list[SearchHit]
    provider: str
    degraded: bool = False  # a preferred provider failed
    message: str = ""  # errors of the preferred providers
    cached: bool = False  # replayed from a cassette


class ProviderChain:
    """Searches with one or more providers of one kind, in order of preference."""

    def __init__(self, providers: Sequence[SearchProvider]):
        if not providers:
            raise ValueError("a chain needs a provider")
        self.providers = tuple(providers)

    async def search(self, query: str | bytes, k: int) -> SearchAnswer:
        """Returns the answer of the first provider that succeeds.

        Raises:
            BadQuery: a provider rejected the query; later providers are not tried.
            SearchError: every provider failed.
        """
        failures: list[str] = []
        for provider in self.providers:
            try:
                if isinstance(provider, CachedProvider):
                    items, cached = await provider.search_or_replay(query, k)
                else:
                    items, cached = await provider.search(query, k), False
            except BadQuery:
                raise
            except SearchError as error:
                failures.append(str(error))
            else:
                return SearchAnswer(items, provider.name, bool(failures), "; ".join(failures), cached)
        raise SearchError("; ".join(failures))
