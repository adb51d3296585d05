"""Searches by image with Google Lens, through SerpApi or Serper.

Both take the public URL of an image instead of its bytes; `public_urls` provides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from tools_service.search.http import schemas
from tools_service.search.http.request import HttpRequest
from tools_service.search.provider import SearchHit
from tools_service.search.providers.web import Locale, redact

if TYPE_CHECKING:  # the command line imports APIS only; this keeps its start fast
    from tools_service.search.http.public_urls import PublicUrls
    from tools_service.search.http.thumbnails import ThumbnailFetcher
    from tools_service.search.http.transport import Transport


@dataclass(frozen=True)
class LensApi:
    """An API for Google Lens. `build_request` takes URL, image URL, locale and key."""

    build_request: Callable[[str, str, Locale, str], HttpRequest]
    reply_schema: type[Any]
    url: str
    key_variable: str  # environment variable of its key
    auth_error_hint: str = "check its key and plan"  # advice for status 401, 402 or 403
    rate: float = 5.0  # default rate limit, requests per second


def _serpapi(url: str, image_url: str, locale: Locale, key: str) -> HttpRequest:
    params = {
        "engine": "google_lens", "type": "visual_matches", "url": image_url,
        "hl": locale.language, "country": locale.country, "api_key": key,
    }  # fmt: skip
    return HttpRequest("GET", url, params=params)


def _serper(url: str, image_url: str, locale: Locale, key: str) -> HttpRequest:
    body = {"url": image_url, "gl": locale.country, "hl": locale.language}
    return HttpRequest("POST", url, json=body, headers={"X-API-KEY": key})


APIS = {
    "serpapi-lens": LensApi(_serpapi, schemas.SerpApiLensReply, "https://serpapi.com/search.json", "SERPAPI_API_KEY"),
    "serper-lens": LensApi(
        _serper, schemas.SerperLensReply, "https://google.serper.dev/lens", "SERPER_API_KEY", rate=20
    ),
}


class LensSearch:
    """Searches by image through one of `APIS`."""

    def __init__(
        self, name: str, transport: Transport, key: SecretStr, public_urls: PublicUrls, thumbnails: ThumbnailFetcher,
        url: str = "", locale: Locale | None = None,
    ):  # fmt: skip
        """Uses the API `name` of `APIS`, at `url` if given."""
        self.name, self.transport = name, transport
        self._api, self._key, self._locale = APIS[name], key, locale or Locale()
        self._url = url or self._api.url
        self._public_urls, self._thumbnails = public_urls, thumbnails

    async def search(self, image: bytes, k: int) -> list[SearchHit]:
        key = self._key.get_secret_value()
        async with self._public_urls.url_for(image) as image_url:
            reply = await self.transport.fetch(
                self._api.build_request(self._url, image_url, self._locale, key), self._api.reply_schema
            )
        matches = reply.matches()[:k]
        thumbnails = await self._thumbnails.fetch([url for _, url in matches])
        return [
            dataclasses.replace(redact(key, item), thumbnail=thumbnail)
            for (item, _), thumbnail in zip(matches, thumbnails, strict=True)
        ]
