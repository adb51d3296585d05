"""Validates that bytes from a session are one still WebP image of bounded size (RFC 9649).

Only the container is checked. The pixels, encoded by untrusted code, are not decoded, so clients must decode them
with a current libwebp.
"""

from __future__ import annotations

import struct

from tools_service.sandbox.protocol.png_validator import InvalidImage

_ALPHA = 0x10  # the only VP8X flag accepted: the encoder writes no animation, EXIF, XMP or color profile


def validate(data: bytes, max_pixels: float) -> tuple[bytes, int, int]:
    """Returns the image, its width and its height. Raises InvalidImage."""
    if len(data) < 20 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise InvalidImage("no WebP header")
    if struct.unpack_from("<I", data, 4)[0] + 8 != len(data):
        raise InvalidImage("wrong length")
    position, size, canvas = 12, None, None
    while position < len(data):
        if position + 8 > len(data):
            raise InvalidImage("truncated")
        kind, length = struct.unpack_from("<4sI", data, position)
        body = memoryview(data)[position + 8 : position + 8 + length]
        if len(body) != length:
            raise InvalidImage("truncated")
        if kind == b"VP8X" and position == 12 and length == 10 and not body[0] & ~_ALPHA:
            canvas = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind in (b"VP8L", b"VP8 ") and size is None:
            size = _lossless(body) if kind == b"VP8L" else _lossy(body)
        elif not (kind == b"ALPH" and canvas is not None and size is None):
            raise InvalidImage(f"unexpected chunk {kind!r}")
        position += 8 + length + length % 2
    if size is None or position != len(data) or canvas not in (None, size):
        raise InvalidImage("no proper picture")
    if not 0 < size[0] * size[1] <= max_pixels:
        raise InvalidImage(f"{size[0]} x {size[1]} pixels")
    return data, *size


def _lossless(body: memoryview) -> tuple[int, int]:
    if len(body) < 5 or body[0] != 0x2F:
        raise InvalidImage("no lossless header")
    bits = int.from_bytes(body[1:5], "little")
    if bits >> 29:
        raise InvalidImage("unknown lossless version")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _lossy(body: memoryview) -> tuple[int, int]:
    if len(body) < 10 or body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
        raise InvalidImage("no key frame")
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF
