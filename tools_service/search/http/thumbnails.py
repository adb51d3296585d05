"""Small pictures of results, fetched from wherever a provider's reply points: addresses that strangers chose.

So only public hosts are asked, by the very address that was checked (a name may resolve differently a moment later), no
redirect is followed, and what comes back is decoded and encoded again. A picture that cannot be had is no error.
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

_MOST_BYTES = 2 << 20
_TIMEOUT_S = 5.0
_AT_ONCE = 16
_PORTS = {"http": 80, "https": 443}


def is_public(address: str, port: int) -> bool:
    """Whether a result may point there: a public unicast address, on the web's own ports."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry an IPv4 one lead to that one.
        if ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        elif ip.sixtofour or ip.teredo or ip in ipaddress.ip_network("64:ff9b::/32"):
            return False
    return ip.is_global and not ip.is_multicast and port in _PORTS.values()


class Thumbnails:
    """Fetches pictures; for one event loop."""

    def __init__(self, allowed: Callable[[str, int], bool] = is_public, verify: ssl.SSLContext | bool = True):
        """``allowed`` says of an IP address and a port whether they may be asked; ``verify`` whose certificates count."""
        self._allowed = allowed
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False, verify=verify, headers={"accept-encoding": "identity"},
        )  # fmt: skip

    async def fetch(self, urls: Sequence[str]) -> list[bytes]:
        """A PNG of at most 224 pixels a side for each URL (http, https, data), empty where there is none to be had."""
        return await asyncio.gather(*map(self._one, urls))

    async def close(self) -> None:
        await self._http.aclose()

    async def _one(self, url: str) -> bytes:
        try:
            async with self._slots, asyncio.timeout(_TIMEOUT_S):
                data = _inline(url) if url.startswith("data:") else await self._get(url)
                return await asyncio.to_thread(descriptors.small_png, data)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError):
            return b""

    async def _get(self, url: str) -> bytes:
        parts = httpx.URL(url)
        if parts.scheme not in _PORTS or not parts.host or parts.userinfo:
            raise ValueError("neither http nor https")
        port = parts.port or _PORTS[parts.scheme]
        address = await self._address(parts.host, port)
        request = self._http.build_request(
            "GET",
            parts.copy_with(host=address),
            headers={"host": parts.netloc.decode("ascii")},
            extensions={"sni_hostname": parts.host} if parts.scheme == "https" else {},
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("no picture")
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > _MOST_BYTES:
                    raise ValueError("too large")
            return bytes(data)
        finally:
            await response.aclose()

    async def _address(self, host: str, port: int) -> str:
        """An address of ``host``, all of whose addresses are allowed. Raises ValueError, OSError."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self._allowed(address, port) for address in addresses):
            raise ValueError("not a public address")
        return addresses[0]


def _inline(url: str) -> bytes:
    """The picture inside a ``data:`` URL. Raises ValueError."""
    head, _, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or len(body) > 2 * _MOST_BYTES:
        raise ValueError("no inline picture")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
