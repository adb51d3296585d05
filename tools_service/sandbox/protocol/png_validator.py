"""Validates a PNG from a session: bounded size, decodable pixels, and no chunks other than those that pixels need."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSED_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"pHYs"))
_INFLATE_STEP = 1 << 18


class InvalidImage(Exception):
    """The bytes are not an image that may be returned to a client."""


def validate(data: bytes, max_pixels: float) -> tuple[bytes, int, int]:
    """Returns the sanitized image, its width and its height (PNG specification, sections 5 and 11).

    Checks the length, order and checksum of every chunk. The pixels are decompressed as a stream and must match the
    size in the header exactly. Text, color profiles and other ancillary chunks, which may exploit decoders or
    mislead readers, are removed. Interlaced images are rejected.

    Raises:
        InvalidImage: the bytes are not such an image.
    """
    if data[:8] != _SIGNATURE:
        raise InvalidImage("no PNG signature")
    kind, body, position = _read_chunk(data, 8)
    width, height, pixels = _parse_ihdr(kind, body, max_pixels)
    seen, parts = [kind], [_SIGNATURE, data[8:position]]
    while position < len(data) and seen[-1:] != [b"IEND"]:
        kind, body, end = _read_chunk(data, position)
        if kind == b"IHDR":
            raise InvalidImage("two headers")
        if kind == b"IDAT":
            if b"IDAT" in seen and seen[-1] != kind:
                raise InvalidImage("pixels in two places")
            pixels.add(body)
        elif kind not in _PASSED_CHUNKS and not kind[0] & 0x20:
            raise InvalidImage(f"unknown critical chunk {kind!r}")
        if kind in _PASSED_CHUNKS:
            parts.append(data[position:end])
        seen.append(kind)
        position = end
    if seen[-1:] != [b"IEND"] or position != len(data):
        raise InvalidImage("no proper end")
    if seen.count(b"PLTE") > 1 or (pixels.palette and b"PLTE" not in seen[: _first_index(seen, b"IDAT")]):
        raise InvalidImage("no proper palette")
    pixels.finish()
    return b"".join(parts) if len(parts) <= len(seen) else data, width, height


def _read_chunk(data: bytes, position: int) -> tuple[bytes, memoryview, int]:
    if position + 12 > len(data):
        raise InvalidImage("truncated")
    length, kind = struct.unpack_from(">I4s", data, position)
    end = position + 12 + length
    if end > len(data):
        raise InvalidImage("truncated")
    view = memoryview(data)
    if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
        raise InvalidImage(f"wrong checksum in {kind!r}")
    return kind, view[position + 8 : end - 4], end


def _first_index(seen: list[bytes], kind: bytes) -> int:
    return seen.index(kind) if kind in seen else len(seen)


def _parse_ihdr(kind: bytes, body: memoryview, max_pixels: float) -> tuple[int, int, _PixelStream]:
    if kind != b"IHDR" or len(body) != 13:
        raise InvalidImage("does not start with IHDR")
    width, height, depth, color, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(color, ()) or compression or filtering or interlace:
        raise InvalidImage("impossible IHDR")
    if not 0 < width * height <= max_pixels:
        raise InvalidImage(f"{width} x {height} pixels")
    row = 1 + (width * depth * _CHANNELS[color] + 7) // 8
    return width, height, _PixelStream(row, row * height, palette=color == 3)


class _PixelStream:
    """Decompresses the rows as a stream and checks the number of bytes and the filter type of every row."""

    def __init__(self, row: int, size: int, palette: bool):
        self._row, self._size, self.palette = row, size, palette
        self._stream, self._count = zlib.decompressobj(), 0

    def add(self, body: memoryview | bytes) -> None:
        while True:
            try:
                part = self._stream.decompress(body, _INFLATE_STEP)
            except zlib.error:
                raise InvalidImage("pixels that cannot be decompressed") from None
            if part and max(part[-self._count % self._row :: self._row], default=0) > 4:
                raise InvalidImage("an unknown filter")
            self._count += len(part)
            if self._count > self._size:
                raise InvalidImage("more pixels than the header says")
            body = self._stream.unconsumed_tail
            if not body and len(part) < _INFLATE_STEP:
                return

    def finish(self) -> None:
        if self._count != self._size or not self._stream.eof:
            raise InvalidImage("fewer pixels than the header says")
