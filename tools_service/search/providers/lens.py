"""Reverse image search by Google Lens, through SerpApi or Serper.

Both take the public URL of a picture, none takes its bytes: ``public_urls`` says where it lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tools_service.search.http import schemas
from tools_service.search.http.request import Request
from tools_service.search.provider import Item
from tools_service.search.providers.web import Locale, without

if TYPE_CHECKING:  # the command line reads APIS alone, and quickly
    from tools_service.search.http.public_urls import PublicUrls
    from tools_service.search.http.thumbnails import Thumbnails
    from tools_service.search.http.transport import Transport


@dataclass(frozen=True)
class LensApi:
    """One way to Google Lens. ``ask`` gets URL, the picture's URL, locale and key."""

    ask: Callable[[str, str, Locale, str], Request]
    reply: type
    url: str
    key: str  # environment variable of its key
    if_refused: str = "check its key and plan"  # what to do about status 401, 402 or 403
    rate: float = 5.0  # requests a second unless told otherwise


def _serpapi(url: str, picture: str, locale: Locale, key: str) -> Request:
    asked = {
        "engine": "google_lens", "type": "visual_matches", "url": picture,
        "hl": locale.language, "country": locale.country, "api_key": key,
    }  # fmt: skip
    return Request("GET", url, params=asked)


def _serper(url: str, picture: str, locale: Locale, key: str) -> Request:
    body = {"url": picture, "gl": locale.country, "hl": locale.language}
    return Request("POST", url, json=body, headers={"X-API-KEY": key})


APIS = {
    "serpapi-lens": LensApi(_serpapi, schemas.SerpApiLensReply, "https://serpapi.com/search.json", "SERPAPI_API_KEY"),
    "serper-lens": LensApi(
        _serper, schemas.SerperLensReply, "https://google.serper.dev/lens", "SERPER_API_KEY", rate=20
    ),
}


class LensSearch:
    """An image provider behind HTTP."""

    def __init__(
        self, name: str, transport: Transport, key: SecretStr, pictures: PublicUrls, thumbnails: Thumbnails,
        url: str = "", locale: Locale | None = None,
    ):  # fmt: skip
        """``name`` is one of ``APIS``; ``url`` replaces its own."""
        self.name, self.transport = name, transport
        self._api, self._key, self._locale = APIS[name], key, locale or Locale()
        self._url = url or self._api.url
        self._pictures, self._thumbnails = pictures, thumbnails

    async def search(self, image: bytes, k: int) -> list[Item]:
        key = self._key.get_secret_value()
        async with self._pictures.of(image) as picture:
            reply = await self.transport.ask(self._api.ask(self._url, picture, self._locale, key), self._api.reply)
        matches = reply.matches()[:k]
        thumbnails = await self._thumbnails.fetch([url for _, url in matches])
        return [
            dataclasses.replace(without(key, item), thumbnail=thumbnail)
            for (item, _), thumbnail in zip(matches, thumbnails, strict=True)
        ]
