"""Where a provider that takes no upload can see the picture that is searched for.

Showing a picture to the world is the operator's decision; nothing here does so unless told where and how.
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
from tools_service.search.indexing.corpora import picture_bytes, read_rows
from tools_service.search.provider import BadQuery, SearchError

_LONGEST_SIDE = 1600  # pixels
_MOST_PIXELS = 100e6


class PublicUrls(Protocol):
    def of(self, image: bytes) -> AbstractAsyncContextManager[str]:
        """The URL of an encoded picture, good for the length of the block. Raises SearchError."""


class UrlTable:
    """Pictures that are on the web already, as those of public data sets are."""

    def __init__(self, urls: Mapping[bytes, str]):
        """``urls`` by SHA-256 of the encoded picture."""
        self._urls = urls

    @classmethod
    def open(cls, path: str) -> UrlTable:
        """From JSONL or Parquet rows with "url" and "sha256" (hex) or "image" (path or bytes). Raises ValueError."""
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
                    picture_bytes(row.get("image"), Path(path).parent, f"{path}: row {number}")
                ).digest()
            urls[digest] = url
        return cls(urls)

    @contextlib.asynccontextmanager
    async def of(self, image: bytes) -> AsyncIterator[str]:
        url = self._urls.get(hashlib.sha256(image).digest())
        if url is None:
            raise SearchError("the picture is not in the table of public URLs (--picture-urls)")
        yield url


class PublishFolder:
    """A folder that some web server shows: a picture lies there while it is searched for, under an unguessable name."""

    def __init__(self, folder: str, url: str):
        """``url`` is the public address of ``folder``. Raises ValueError."""
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise ValueError(f"--publish-folder {folder} is no folder that can be written to")
        if not web_url(url):
            raise ValueError(f"--publish-url {url!r} is no http or https address")
        self._folder, self._url = folder, url.rstrip("/")

    @contextlib.asynccontextmanager
    async def of(self, image: bytes) -> AsyncIterator[str]:
        data = _bare(image)
        name = f"{secrets.token_urlsafe(24)}.jpg"
        path = os.path.join(self._folder, name)
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(data)
            os.chmod(file.name, 0o644)
            os.rename(file.name, path)
        except OSError as error:
            raise SearchError(f"the picture cannot be published: {error.strerror}") from None
        try:
            yield f"{self._url}/{name}"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _bare(image: bytes) -> bytes:
    """The picture as JPEG of at most 1600 pixels a side, without metadata (places, cameras, names). Raises BadQuery."""
    try:
        opened = Image.open(io.BytesIO(image))
        if opened.width * opened.height > _MOST_PIXELS:
            raise BadQuery(f"{opened.width} x {opened.height} pixels are too many")
        plain = ImageOps.exif_transpose(opened).convert("RGB")
    except BadQuery:
        raise
    except Exception as error:  # PIL raises many kinds for broken files
        raise BadQuery(f"not a picture: {type(error).__name__}") from None
    plain.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    Image.frombytes("RGB", plain.size, plain.tobytes()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
