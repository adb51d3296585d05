"""Opens the search providers of a service and answers its search requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tools_service.common.extras import needs_extra
from tools_service.proto import tools_pb2 as pb
from tools_service.search.chain import ProviderChain
from tools_service.search.http.request import RetryPolicy
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, SearchError
from tools_service.search.providers import lens, web
from tools_service.search.recording_store import CachedProvider, CassetteStore
from tools_service.search.search_options import SearchOptions

if TYPE_CHECKING:  # imports PIL and OpenCV, needed only for image search
    from tools_service.search.http.thumbnails import ThumbnailFetcher


@dataclass(frozen=True)
class SearchProviders:
    """Holds the provider chains of a service and their shared resources."""

    text: ProviderChain | None = None
    image: ProviderChain | None = None
    transports: tuple[Transport, ...] = ()
    cassettes: CassetteStore | None = None
    thumbnails: ThumbnailFetcher | None = None

    @classmethod
    def open(cls, options: SearchOptions) -> SearchProviders:
        """Opens the chains for the options: live providers first, the index last. Raises ValueError."""
        from tools_service.search.providers.text_index import TextIndex

        builder = _ProviderBuilder(options)
        text = [builder.text(name, url) for name, url in options.text]
        if options.text_index:
            text.append(TextIndex.open(options.text_index))
        image = [builder.image(name, where) for name, where in options.image]
        if options.image_index:
            with needs_extra("images", "an image index"):
                from tools_service.search.providers.image_index import ImageIndex
            image.append(ImageIndex.open(options.image_index, options.embedding))
        return cls(
            ProviderChain(text) if text else None, ProviderChain(image) if image else None,
            tuple(builder.transports), builder.cassettes, builder.thumbnails,
        )  # fmt: skip

    def chain_descriptions(self) -> list[str]:
        """Returns one line per kind of search: its providers, best first."""
        return [" → ".join(p.name for p in chain.providers) for chain in (self.text, self.image) if chain is not None]

    def provider_states(self) -> dict[str, dict]:
        """Returns the circuit state and the event counters of each live provider."""
        states = {t.name: {"circuit": t.breaker.state, **t.counters} for t in self.transports}
        for chain in filter(None, (self.text, self.image)):
            for provider in chain.providers:
                if isinstance(provider, CachedProvider):
                    states.setdefault(provider.name, {}).update(provider.counters)
        return states

    async def close(self) -> None:
        """Closes the connections and the cassette."""
        for transport in self.transports:
            await transport.close()
        if self.thumbnails is not None:
            await self.thumbnails.close()
        if self.cassettes is not None:
            self.cassettes.close()

    async def search(self, request: pb.SearchRequest) -> pb.Result:
        """Answers one request; errors are reported as its status and message."""
        kind = request.WhichOneof("query")
        chain = self.text if kind == "text" else self.image
        if chain is None:
            message = f"this service has no {kind} index"
            return pb.Result(request_id=request.request_id, status=pb.REFUSED, message=message)
        started = time.monotonic()
        try:
            answer = await chain.search(request.text.query if kind == "text" else request.image.image, request.k)
        except BadQuery as error:
            return pb.Result(request_id=request.request_id, status=pb.REFUSED, message=_encodable(str(error)))
        except SearchError as error:
            return pb.Result(request_id=request.request_id, status=pb.UNAVAILABLE, message=_encodable(str(error)))
        return pb.Result(
            request_id=request.request_id,
            status=pb.OK,
            wall_ms=(time.monotonic() - started) * 1e3,
            provider=answer.provider,
            degraded=answer.degraded,
            cached=answer.cached,
            message=_encodable(answer.message),
            items=[
                pb.SearchItem(
                    title=_encodable(item.title),
                    url=_encodable(item.url),
                    snippet=_encodable(item.snippet),
                    date=_encodable(item.date),
                    thumbnail=item.thumbnail,
                    score=item.score,
                )
                for item in answer.items
            ],
        )


def _encodable(text: str) -> str:
    """Replaces lone surrogates, which a provider's JSON may contain and protobuf rejects."""
    return text.encode("utf-8", "replace").decode()


class _ProviderBuilder:
    """Builds the live providers and the resources that they share."""

    def __init__(self, options: SearchOptions):
        self._options = options
        self._replays = options.cache_mode == "replay"
        self.transports: list[Transport] = []
        self.cassettes = CassetteStore(options.cache, read_only=self._replays) if options.cache else None
        self.thumbnails, self._public_urls = None, None
        if not self._replays and any(name in lens.APIS for name, _ in options.image):
            with needs_extra("images", "image search"):
                from tools_service.search.http.public_urls import PublishFolder, UrlTable
                from tools_service.search.http.thumbnails import ThumbnailFetcher

            self.thumbnails = ThumbnailFetcher()
            self._public_urls = (
                UrlTable.open(options.image_urls) if options.image_urls else PublishFolder(*options.publish)
            )

    def text(self, name: str, url: str):
        """Builds a live text provider, recorded if there is a cassette."""
        if self._replays:
            return self._recorded(name, None)
        search = web.WebSearch(
            name,
            self._transport(name, web.APIS[name].auth_error_hint),
            self._key(web.APIS[name].key_variable),
            url,
            self._options.locale,
        )
        return search if self.cassettes is None else self._recorded(name, search)

    def image(self, name: str, where: str):
        """Builds a live image provider, recorded if there is a cassette, or opens the MMSearch-R1 cache."""
        if name == "mmsearch-r1":
            with needs_extra("images", "image search"):
                from tools_service.search.providers.mmsearch_r1 import MMSearchR1Cache

            return MMSearchR1Cache.open(where, self._options.mmsearch_rows)
        if self._replays:
            return self._recorded(name, None)
        assert self._public_urls is not None and self.thumbnails is not None  # as a live image provider is wanted
        search = lens.LensSearch(
            name, self._transport(name, lens.APIS[name].auth_error_hint), self._key(lens.APIS[name].key_variable), self._public_urls, self.thumbnails, where, self._options.locale,
        )  # fmt: skip
        return search if self.cassettes is None else self._recorded(name, search)

    def _recorded(self, name: str, provider) -> CachedProvider:
        locale = self._options.locale
        assert self.cassettes is not None
        return CachedProvider(
            name, provider, self.cassettes, self._options.cache_mode, f"{locale.country}-{locale.language}"
        )

    def _transport(self, name: str, auth_error_hint: str) -> Transport:
        policy = self._options.retry_policies.get(name, RetryPolicy())
        self.transports.append(Transport(name, policy, self._options.proxy, auth_error_hint))
        return self.transports[-1]

    def _key(self, variable: str) -> SecretStr:
        return self._options.keys[variable] if variable else SecretStr("")
