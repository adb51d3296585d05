"""Checks that bytes from a session are a PNG of bearable size that decodes, and passes on nothing but its pixels."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"pHYs"))
_STEP = 1 << 18


class BadPicture(Exception):
    """Not a picture that may be passed on."""


def check(data: bytes, max_pixels: float) -> tuple[bytes, int, int]:
    """The picture, its width and its height (PNG specification, sections 5 and 11).

    Every chunk is walked: lengths, order and checksums. The pixels are decompressed, never kept, and must be
    exactly as many as the header says. Texts, profiles and other chunks that a decoder may stumble over, or a
    reader be told lies by, are left out. Interlaced pictures are not accepted. Raises BadPicture.
    """
    if data[:8] != _SIGNATURE:
        raise BadPicture("no PNG signature")
    position, seen = 8, []
    parts, pixels = [_SIGNATURE], None
    width = height = 0
    while position < len(data) and seen[-1:] != [b"IEND"]:
        kind, body, end = _chunk(data, position)
        if not seen:
            width, height, pixels = _header(kind, body, max_pixels)
        elif kind == b"IHDR":
            raise BadPicture("two headers")
        if kind == b"IDAT":
            if b"IDAT" in seen and seen[-1] != kind:
                raise BadPicture("pixels in two places")
            pixels.add(body)
        elif kind not in _KEPT and not kind[0] & 0x20:
            raise BadPicture(f"unknown critical chunk {kind!r}")
        if kind in _KEPT:
            parts.append(data[position:end])
        seen.append(kind)
        position = end
    if seen[-1:] != [b"IEND"] or position != len(data):
        raise BadPicture("no proper end")
    if seen.count(b"PLTE") > 1 or (pixels.palette and b"PLTE" not in seen[: _first(seen, b"IDAT")]):
        raise BadPicture("no proper palette")
    pixels.finish()
    return b"".join(parts) if len(parts) <= len(seen) else data, width, height


def _chunk(data: bytes, position: int) -> tuple[bytes, memoryview, int]:
    if position + 12 > len(data):
        raise BadPicture("truncated")
    length, kind = struct.unpack_from(">I4s", data, position)
    end = position + 12 + length
    if end > len(data):
        raise BadPicture("truncated")
    view = memoryview(data)
    if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
        raise BadPicture(f"wrong checksum in {kind!r}")
    return kind, view[position + 8 : end - 4], end


def _first(seen: list[bytes], kind: bytes) -> int:
    return seen.index(kind) if kind in seen else len(seen)


def _header(kind: bytes, body: memoryview, max_pixels: float) -> tuple[int, int, _Pixels]:
    if kind != b"IHDR" or len(body) != 13:
        raise BadPicture("does not start with IHDR")
    width, height, depth, color, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(color, ()) or compression or filtering or interlace:
        raise BadPicture("impossible IHDR")
    if not 0 < width * height <= max_pixels:
        raise BadPicture(f"{width} x {height} pixels")
    row = 1 + (width * depth * _CHANNELS[color] + 7) // 8
    return width, height, _Pixels(row, row * height, palette=color == 3)


class _Pixels:
    """The compressed rows: how many bytes come out, and whether each row starts with a filter that exists."""

    def __init__(self, row: int, size: int, palette: bool):
        self._row, self._size, self.palette = row, size, palette
        self._stream, self._count = zlib.decompressobj(), 0

    def add(self, body: memoryview) -> None:
        while True:
            try:
                part = self._stream.decompress(body, _STEP)
            except zlib.error:
                raise BadPicture("pixels that cannot be decompressed") from None
            if part and max(part[-self._count % self._row :: self._row], default=0) > 4:
                raise BadPicture("an unknown filter")
            self._count += len(part)
            if self._count > self._size:
                raise BadPicture("more pixels than the header says")
            body = self._stream.unconsumed_tail
            if not body and len(part) < _STEP:
                return

    def finish(self) -> None:
        if self._count != self._size or not self._stream.eof:
            raise BadPicture("fewer pixels than the header says")
