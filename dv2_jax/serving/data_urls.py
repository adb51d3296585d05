"""Decodes images that a request contains as data URLs. No URL is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re

from dv2_jax.serving.api_error import invalid

_DATA_URL = re.compile(r"data:([\w/+.-]*)((?:;[\w=.+-]+)*?)(;base64)?,", re.IGNORECASE)
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp")


def decode_image(url: str, param: str) -> bytes:
    """Returns the bytes of an image in a data URL, which are those of a PNG, JPEG or WebP file.

    Raises:
        ApiError: the URL is not a data URL, has another media type, is not base64, or its bytes are of another format.
    """
    if not url[:5].lower() == "data:":
        raise invalid(
            f"{param} is {url[:60]!r}: this server fetches no URLs; send the image as data:image/png;base64,...",
            param,
            "unsupported_image_url",
        )
    match = _DATA_URL.match(url)
    if match is None or not match.group(3):
        raise invalid(f"{param} is no base64 data URL: {url[:60]!r}", param, "invalid_image")
    media_type = match.group(1).lower()
    if media_type not in _MEDIA_TYPES:
        raise invalid(f"{param} has media type {media_type!r}: use PNG, JPEG or WebP", param, "invalid_image")
    try:
        data = base64.b64decode(re.sub(r"\s+", "", url[match.end() :]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{param} is not valid base64: {error}", param, "invalid_image") from None
    if not is_supported_format(data):
        raise invalid(f"{param} contains {len(data)} bytes that are no PNG, JPEG or WebP file", param, "invalid_image")
    return data


def is_supported_format(data: bytes) -> bool:
    """Returns whether bytes start like a PNG, JPEG or WebP file."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))
