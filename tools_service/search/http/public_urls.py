"""Provides public URLs of query images for providers that accept no upload.

Publishing an image is the operator's decision: it happens only with an explicitly configured folder and URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from tools_service.search.http.schemas import web_url
from tools_service.search.indexing.corpora import image_bytes, read_rows
from tools_service.search.provider import BadQuery, SearchError

_MAX_SIDE = 1600  # pixels
_MAX_PIXELS = 100e6


class PublicUrls(Protocol):
    """A source of public URLs of images."""

    def url_for(self, image: bytes) -> AbstractAsyncContextManager[str]:
        """Returns a context manager with the URL of an encoded image, valid inside the block. Raises SearchError."""


class UrlTable:
    """Maps images that are already on the web, such as those of public data sets, to their URLs."""

    def __init__(self, urls: Mapping[bytes, str]):
        """Takes URLs by the SHA-256 of the encoded image."""
        self._urls = urls

    @classmethod
    def open(cls, path: str) -> UrlTable:
        """Reads JSONL or Parquet rows with "url" and "sha256" (hex) or "image" (path or bytes). Raises ValueError."""
        urls = {}
        for number, row in enumerate(read_rows(path), start=1):
            url = row.get("url")
            if not isinstance(url, str) or not web_url(url):
                raise ValueError(f'{path}: row {number} needs "url", an http or https address')
            if isinstance(row.get("sha256"), str):
                try:
                    digest = bytes.fromhex(row["sha256"])
                except ValueError:
                    raise ValueError(f'{path}: "sha256" of row {number} is not hexadecimal') from None
            else:
                digest = hashlib.sha256(
                    image_bytes(row.get("image"), Path(path).parent, f"{path}: row {number}")
                ).digest()
            urls[digest] = url
        return cls(urls)

    @contextlib.asynccontextmanager
    async def url_for(self, image: bytes) -> AsyncIterator[str]:
        url = self._urls.get(hashlib.sha256(image).digest())
        if url is None:
            raise SearchError("the image is not in the table of public URLs (--image-urls)")
        yield url


class PublishFolder:
    """Publishes an image in a folder of a web server during its search, under an unguessable name."""

    def __init__(self, folder: str, url: str):
        """Publishes in `folder`, whose public address is `url`. Raises ValueError."""
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise ValueError(f"--publish-folder {folder} is no folder that can be written to")
        if not web_url(url):
            raise ValueError(f"--publish-url {url!r} is no http or https address")
        self._folder, self._url = folder, url.rstrip("/")

    @contextlib.asynccontextmanager
    async def url_for(self, image: bytes) -> AsyncIterator[str]:
        data = _strip_metadata(image)
        name = f"{secrets.token_urlsafe(24)}.jpg"
        path = os.path.join(self._folder, name)
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(data)
            os.chmod(file.name, 0o644)
            os.rename(file.name, path)
        except OSError as error:
            raise SearchError(f"the image cannot be published: {error.strerror}") from None
        try:
            yield f"{self._url}/{name}"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _strip_metadata(image: bytes) -> bytes:
    """Encodes the image as JPEG of at most 1600 pixels a side, without metadata (location, camera). Raises BadQuery."""
    try:
        opened = Image.open(io.BytesIO(image))
        if opened.width * opened.height > _MAX_PIXELS:
            raise BadQuery(f"{opened.width} x {opened.height} pixels are too many")
        plain = ImageOps.exif_transpose(opened).convert("RGB")
    except BadQuery:
        raise
    except Exception as error:  # PIL raises many kinds for broken files
        raise BadQuery(f"not a picture: {type(error).__name__}") from None
    plain.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    Image.frombytes("RGB", plain.size, plain.tobytes()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
