"""The providers that a service runs with, and the answer to one request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tools_service.proto import tools_pb2 as pb
from tools_service.search.chain import Chain
from tools_service.search.http.request import Policy
from tools_service.search.http.transport import Transport
from tools_service.search.provider import BadQuery, SearchError
from tools_service.search.providers import lens, web
from tools_service.search.recording_store import Recorded, Recordings
from tools_service.search.search_options import SearchOptions

if TYPE_CHECKING:  # what handles pictures is loaded where it is needed
    from tools_service.search.http.thumbnails import Thumbnails


@dataclass(frozen=True)
class Providers:
    """What searches go to."""

    text: Chain | None = None
    image: Chain | None = None
    transports: tuple[Transport, ...] = ()
    recordings: Recordings | None = None
    thumbnails: Thumbnails | None = None

    @classmethod
    def open(cls, options: SearchOptions) -> Providers:
        """The chains for the options: live providers first, then the index. Raises ValueError."""
        from tools_service.search.providers.image_index import PictureIndex
        from tools_service.search.providers.text_index import TextIndex

        builder = _Builder(options)
        text = [builder.text(name, url) for name, url in options.text]
        if options.text_index:
            text.append(TextIndex.open(options.text_index))
        image = [builder.image(name, where) for name, where in options.image]
        if options.image_index:
            image.append(PictureIndex.open(options.image_index, options.embedding))
        return cls(
            Chain(text) if text else None, Chain(image) if image else None,
            tuple(builder.transports), builder.recordings, builder.thumbnails,
        )  # fmt: skip

    def names(self) -> list[str]:
        """A line per kind: its providers, best first."""
        return [" → ".join(p.name for p in chain.providers) for chain in (self.text, self.image) if chain is not None]

    def state(self) -> dict[str, dict]:
        """Per live provider: the state of its circuit and what happened how often."""
        state = {t.name: {"circuit": t.breaker.state, **t.counters} for t in self.transports}
        for chain in filter(None, (self.text, self.image)):
            for provider in chain.providers:
                if isinstance(provider, Recorded):
                    state.setdefault(provider.name, {}).update(provider.counters)
        return state

    async def close(self) -> None:
        """Ends connections and closes the recording."""
        for transport in self.transports:
            await transport.close()
        if self.thumbnails is not None:
            await self.thumbnails.close()
        if self.recordings is not None:
            self.recordings.close()

    async def search(self, request: pb.SearchRequest) -> pb.Result:
        """Answers one request; what goes wrong is a status."""
        kind = request.WhichOneof("query")
        chain = self.text if kind == "text" else self.image
        result = pb.Result(request_id=request.request_id, status=pb.OK)
        if chain is None:
            result.status, result.message = pb.REFUSED, f"this service has no {kind} index"
            return result
        started = time.monotonic()
        try:
            answer = await chain.search(request.text.query if kind == "text" else request.image.image, request.k)
        except BadQuery as error:
            result.status, result.message = pb.REFUSED, str(error)
            return result
        except SearchError as error:
            result.status, result.message = pb.UNAVAILABLE, str(error)
            return result
        result.wall_ms = (time.monotonic() - started) * 1e3
        result.provider, result.degraded, result.cached = answer.provider, answer.degraded, answer.cached
        result.message = answer.message
        for item in answer.items:
            result.items.add(
                title=item.title,
                url=item.url,
                snippet=item.snippet,
                date=item.date,
                thumbnail=item.thumbnail,
                score=item.score,
            )
        return result


class _Builder:
    """Makes live providers, and what they share."""

    def __init__(self, options: SearchOptions):
        self._options = options
        self._replays = options.cache_mode == "replay"
        self.transports: list[Transport] = []
        self.recordings = Recordings(options.cache, read_only=self._replays) if options.cache else None
        self.thumbnails, self._pictures = None, None
        if not self._replays and any(name in lens.APIS for name, _ in options.image):
            from tools_service.search.http.public_urls import PublishFolder, UrlTable
            from tools_service.search.http.thumbnails import Thumbnails

            self.thumbnails = Thumbnails()
            self._pictures = (
                UrlTable.open(options.picture_urls) if options.picture_urls else PublishFolder(*options.publish)
            )

    def text(self, name: str, url: str):
        if self._replays:
            return self._recorded(name, None)
        search = web.WebSearch(
            name,
            self._transport(name, web.APIS[name].if_refused),
            self._key(web.APIS[name].key),
            url,
            self._options.locale,
        )
        return search if self.recordings is None else self._recorded(name, search)

    def image(self, name: str, where: str):
        if name == "mmsearch-r1":
            from tools_service.search.providers.mmsearch_r1 import ReleasedCache

            return ReleasedCache.open(where, self._options.mmsearch_rows)
        if self._replays:
            return self._recorded(name, None)
        search = lens.LensSearch(
            name, self._transport(name, lens.APIS[name].if_refused), self._key(lens.APIS[name].key), self._pictures, self.thumbnails, where, self._options.locale,
        )  # fmt: skip
        return search if self.recordings is None else self._recorded(name, search)

    def _recorded(self, name: str, provider) -> Recorded:
        locale = self._options.locale
        return Recorded(
            name, provider, self.recordings, self._options.cache_mode, f"{locale.country}-{locale.language}"
        )

    def _transport(self, name: str, if_refused: str) -> Transport:
        policy = self._options.policies.get(name, Policy())
        self.transports.append(Transport(name, policy, self._options.proxy, if_refused))
        return self.transports[-1]

    def _key(self, variable: str) -> SecretStr:
        return self._options.keys[variable] if variable else SecretStr("")
