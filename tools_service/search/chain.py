"""Providers in order of preference: the first that answers does; if it is not the first of all, the answer says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools_service.search.provider import BadQuery, ImageProvider, Item, SearchError, TextProvider
from tools_service.search.recording_store import Recorded


@dataclass(frozen=True)
class Answer:
    """Results, and who gave them."""

    items: list[Item]
    provider: str
    degraded: bool = False  # a better provider was asked first and failed
    message: str = ""  # what failed
    cached: bool = False  # replayed from a recording


class Chain:
    """One or more providers of one kind."""

    def __init__(self, providers: Sequence[TextProvider | ImageProvider]):
        if not providers:
            raise ValueError("a chain needs a provider")
        self.providers = tuple(providers)

    async def search(self, query: str | bytes, k: int) -> Answer:
        """Raises BadQuery as soon as one provider does, SearchError when all of them failed."""
        failures: list[str] = []
        for provider in self.providers:
            try:
                if isinstance(provider, Recorded):
                    items, cached = await provider.recall(query, k)
                else:
                    items, cached = await provider.search(query, k), False
            except BadQuery:
                raise
            except SearchError as error:
                failures.append(str(error))
            else:
                return Answer(items, provider.name, bool(failures), "; ".join(failures), cached)
        raise SearchError("; ".join(failures))
