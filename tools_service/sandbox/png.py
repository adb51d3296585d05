"""Checks that bytes from a session are a PNG of bearable size, without decoding pixels."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type


class BadPng(Exception):
    """Not a PNG that may be passed on."""


def check(data: bytes, max_pixels: float) -> tuple[int, int]:
    """Width and height. Every chunk is walked: lengths, order and checksums (PNG specification, section 5)."""
    if data[:8] != _SIGNATURE:
        raise BadPng("no PNG signature")
    position, seen, size = 8, [], (0, 0)
    while position < len(data):
        if position + 12 > len(data):
            raise BadPng("truncated")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BadPng("truncated")
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BadPng(f"wrong checksum in {kind!r}")
        if not seen:
            size = _header(kind, data[position + 8 : end - 4], max_pixels)
        seen.append(kind)
        position = end
        if kind == b"IEND":
            break
    if not seen or seen[-1] != b"IEND" or position != len(data) or b"IDAT" not in seen:
        raise BadPng("no proper end")
    return size


def _header(kind: bytes, body: bytes, max_pixels: float) -> tuple[int, int]:
    if kind != b"IHDR" or len(body) != 13:
        raise BadPng("does not start with IHDR")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadPng("impossible IHDR")
    if not 0 < width * height <= max_pixels:
        raise BadPng(f"{width} x {height} pixels")
    return width, height
