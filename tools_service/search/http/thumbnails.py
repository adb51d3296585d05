"""Fetches thumbnails from untrusted URLs in provider replies, with protection against SSRF.

Only public hosts are contacted, at the IP address that was checked (against DNS rebinding); redirects are not
followed; images are decoded and encoded again. A thumbnail that cannot be fetched is not an error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence

import httpx

from tools_service.search.indexing import descriptors

_MAX_BYTES = 2 << 20
_TIMEOUT_S = 5.0
_MAX_CONCURRENT = 16
_PORTS = {"http": 80, "https": 443}


def is_public(address: str, port: int) -> bool:
    """Returns True for a public unicast address with port 80 or 443."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that embed an IPv4 address are routed to it.
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip.sixtofour or ip.teredo or ip in ipaddress.ip_network("64:ff9b::/32"):
            return False
    return ip.is_global and not ip.is_multicast and port in _PORTS.values()


class ThumbnailFetcher:
    """Fetches thumbnails, within one event loop."""

    def __init__(self, allowed: Callable[[str, int], bool] = is_public, verify: ssl.SSLContext | bool = True):
        """Contacts only (IP address, port) pairs for which `allowed` is true; `verify` configures TLS verification."""
        self._allowed = allowed
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False, verify=verify, headers={"accept-encoding": "identity"},
        )  # fmt: skip

    async def fetch(self, urls: Sequence[str]) -> list[bytes]:
        """Returns a PNG of at most 224 pixels a side for each URL (http, https, data); empty bytes on failure."""
        return await asyncio.gather(*map(self._fetch_one, urls))

    async def close(self) -> None:
        await self._http.aclose()

    async def _fetch_one(self, url: str) -> bytes:
        try:
            async with self._slots, asyncio.timeout(_TIMEOUT_S):
                data = _decode_data_url(url) if url.startswith("data:") else await self._download(url)
                return await asyncio.to_thread(descriptors.thumbnail_png, data)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError):
            return b""

    async def _download(self, url: str) -> bytes:
        parts = httpx.URL(url)
        if parts.scheme not in _PORTS or not parts.host or parts.userinfo:
            raise ValueError("neither http nor https")
        port = parts.port or _PORTS[parts.scheme]
        address = await self._resolve(parts.host, port)
        request = self._http.build_request(
            "GET",
            parts.copy_with(host=address),
            headers={"host": parts.netloc.decode("ascii")},
            extensions={"sni_hostname": parts.host} if parts.scheme == "https" else {},
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("no image")
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > _MAX_BYTES:
                    raise ValueError("too large")
            return bytes(data)
        finally:
            await response.aclose()

    async def _resolve(self, host: str, port: int) -> str:
        """Resolves `host` to an IP address. Raises ValueError unless all its addresses are allowed; OSError."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self._allowed(address, port) for address in addresses):
            raise ValueError("not a public address")
        return addresses[0]


def _decode_data_url(url: str) -> bytes:
    """Decodes the image in a `data:` URL. Raises ValueError."""
    head, _, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or len(body) > 2 * _MAX_BYTES:
        raise ValueError("no inline image")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
