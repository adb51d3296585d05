"""Generators of almost valid inputs, and checks of the parsers against an independent decoder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import socket
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.protocol import frames, png_validator, webp_validator

_FORMATS = ("PNG", "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MAX_PIXELS = 1e6


class InvalidInputAccepted(Exception):
    """A parser accepted an input that it should have rejected."""


def damaged(dice: random.Random, data: bytes) -> bytes:
    """Returns `data` with a few bytes flipped, replaced, deleted, duplicated or truncated."""
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                del data[at : at + dice.choice((1, 4, 100, 10_000))]
            case 3:
                data[at:at] = dice.randbytes(dice.choice((1, 4, 100)))
            case 4:
                data[at:at] = data[max(0, at - dice.randrange(200)) : at]
            case 5:
                data[at : at + 4] = struct.pack(">I", dice.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
            case 6:
                del data[at:]
    return bytes(data)


def valid_image(dice: random.Random, kind: str) -> Image.Image:
    size = dice.choice(((1, 1), (8, 8), (33, 17), (200, 150), (640, 3)))
    noise = np.random.default_rng(dice.getrandbits(32)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "TIFF": ("1", "L", "RGB", "CMYK", "F"),
        "WEBP": ("RGB", "RGBA"),
    }
    mode = dice.choice(modes.get(kind, ("RGB", "L")))
    return image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)


def encoded_image(dice: random.Random) -> bytes:
    """Returns an encoded image, mostly damaged; sometimes a decompression bomb or random bytes."""
    match dice.randrange(12):
        case 0:
            return dice.randbytes(dice.choice((0, 1, 100, 5000)))
        case 1:
            return bomb(dice)
    kind = dice.choice(_FORMATS)
    buffer = io.BytesIO()
    valid_image(dice, kind).save(buffer, kind)
    return buffer.getvalue() if dice.random() < 0.15 else damaged(dice, buffer.getvalue())


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(dice: random.Random) -> bytes:
    """Returns a small PNG with huge declared dimensions or a huge decompressed size."""
    side = dice.choice((20_000, 60_000, 2**31 - 1))
    rows = zlib.compress(bytes(dice.choice((10, 30_000_000))), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, dice.randrange(2))
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9)) if dice.random() < 0.5 else b""
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + text + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def name(dice: random.Random) -> str:
    return dice.choice(
        (
            "",
            "a",
            "liar-1",
            "viewer-2",
            "x" * 201,
            "../..",
            "a\0b",
            "é",
            "\n",
            "%s%n",
            "a@b@c",
            "witness@unknown",
            "🙂" * 60,
            str(dice.random()),
        )
    )


def exec_request(dice: random.Random) -> pb.ExecRequest:
    """Returns a request with arbitrary invalid fields, which never names the witness session."""
    code = dice.choice(
        (
            "1",
            "",
            "\0",
            "x" * 300_000,
            "é\ufeff",
            "(" * 5000,
            "f'{'" * 9,
            "\\",
            "pass;" * 20_000,
            "print(1)\r\rprint(2)",
            "\x1a",
            "%%time\n!ls",
        )
    )
    request = pb.ExecRequest(
        request_id=name(dice) if dice.random() < 0.3 else f"r{dice.getrandbits(60)}", session_id=name(dice), code=code,
        timeout_s=dice.choice((0.0, 0.5, -1.0, 1e-9, 1e308, float("nan"), float("inf"), -float("inf"))),
        expects_state=dice.random() < 0.3,
    )  # fmt: skip
    for _ in range(dice.choice((0, 0, 1, 3, 70))):
        request.image_digests.append(dice.randbytes(dice.choice((0, 1, 32, 64))))
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        request.images.append(encoded_image(dice))
    return request


def search_request(dice: random.Random) -> pb.SearchRequest:
    request = pb.SearchRequest(request_id=name(dice) if dice.random() < 0.3 else f"s{dice.getrandbits(60)}")
    request.k = dice.choice((0, 1, 5, 101, 2**31, 2**32 - 1))
    match dice.randrange(3):
        case 0:
            request.text.query = dice.choice(
                ("", "iron", '"', "a AND (", "title:*", "\0", "x" * 5000, "~^" * 300, "[a TO b]", "é" * 200)
            )
        case 1:
            request.image.image = encoded_image(dice)
    return request


def send_garbage(dice: random.Random, address: tuple[str, int]) -> None:
    """Opens a connection and sends bytes that are no valid HTTP/2."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    frame = (
        struct.pack(">I", dice.choice((0, 1, 100, 2**24 - 1)))[1:]
        + bytes([dice.randrange(12), dice.randrange(256)])
        + dice.randbytes(4)
    )
    data = dice.choice(
        (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", dice.randbytes(2000), preface, preface[:9], preface + frame * 50,
         preface + b"\0\0\0\4\0\0\0\0\0" + frame + dice.randbytes(500), b"\x16\x03\x01" + dice.randbytes(200))
    )  # fmt: skip
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(dice.choice((0.01, 0.2)))
        connection.recv(4096)


def forged_reply_cell(dice: random.Random) -> str:
    """Returns the code of a cell that writes a damaged frame to its control channel."""
    header = json.dumps(
        {"nonce": dice.choice(("0" * 32, "", 7, None)), "status": dice.choice(("ok", "error", "refused", "OK", 1)), "message": dice.choice(("", "x" * 900, 5)),
         "dropped": dice.choice((0, -1, 1e300)), "blobs": dice.choice(([0, 0], [1], [2**62], [-1, 1], "x", [0] * 500))}
    ).encode()  # fmt: skip
    size = dice.choice((len(header), len(header), 0, 2**31, 70_000))
    payload = dice.choice((0, 0, 100, 2**31, 60 << 20))
    frame = struct.pack("!II", size, payload) + header + dice.randbytes(dice.choice((0, 0, 100)))
    frame = damaged(dice, frame) if dice.random() < 0.7 else frame
    after = dice.choice(
        (
            "",
            "import time\ntime.sleep(0.05)",
            "os._exit(0)",
            "os.close(3)",
            "while True: os.write(3, data)",
            "import threading\nthreading.Timer(0.02, os.write, (3, data)).start()",
        )
    )
    return f"import os\ndata = {frame!r}\nos.write(3, data)\n{after}"


def parse_frame(dice: random.Random) -> None:
    """Encodes, damages and decodes a frame. An accepted frame must be consistent."""
    blobs = [dice.randbytes(dice.choice((0, 1, 50))) for _ in range(dice.randrange(4))]
    data = damaged(dice, b"".join(frames.encode({"nonce": "n", "x": [1, {"y": None}]}, blobs)))
    try:
        header_size, payload_size = frames.parse_prefix(data[:8].ljust(8, b"\0"), 1000)
        header, payload = data[8 : 8 + header_size], data[8 + header_size : 8 + header_size + payload_size]
        parsed, found = frames.decode(header, payload)
    except frames.FrameError:
        return
    if (
        not isinstance(parsed, dict)
        or b"".join(found) != payload
        or json.loads(header)["blobs"] != [len(b) for b in found]
    ):
        raise InvalidInputAccepted(f"the frame {data!r} gave {parsed!r} and {found!r}")


def parse_png(dice: random.Random) -> None:
    """Checks that an accepted PNG decodes completely in PIL at the same size."""
    buffer = io.BytesIO()
    valid_image(dice, "PNG").save(buffer, "PNG", compress_level=1)
    data = bomb(dice) if dice.random() < 0.01 else damaged(dice, buffer.getvalue())
    if dice.random() < 0.5:
        data = _with_valid_checksums(data)
    try:
        passed, width, height = png_validator.validate(data, _MAX_PIXELS)
    except png_validator.InvalidImage:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(passed))
            image.load()
    except Exception as error:
        raise InvalidInputAccepted(f"passed on, but PIL says {type(error).__name__} ({error}): {data!r}") from None
    if image.size != (width, height) or width * height > _MAX_PIXELS:
        raise InvalidInputAccepted(f"said to be {width} x {height}, but is {image.size}: {data!r}")


def parse_webp(dice: random.Random) -> None:
    """Checks that an accepted WebP that PIL decodes is a single still image of the same size."""
    buffer = io.BytesIO()
    valid_image(dice, "WEBP").save(buffer, "WEBP", lossless=dice.random() < 0.8, quality=50)
    data = bytearray(damaged(dice, buffer.getvalue()) if dice.random() < 0.8 else buffer.getvalue())
    if dice.random() < 0.7 and len(data) > 8:
        data[4:8] = struct.pack("<I", len(data) - 8)
    try:
        passed, width, height = webp_validator.validate(bytes(data), _MAX_PIXELS)
    except png_validator.InvalidImage:
        return
    try:
        image = Image.open(io.BytesIO(passed))
        image.load()
    except Exception:  # the validator checks the container only; the decoder rejects a damaged bitstream
        return
    if image.size != (width, height) or getattr(image, "n_frames", 1) != 1:
        raise InvalidInputAccepted(f"said to be {width} x {height}, but is {image.size}: {bytes(data)!r}")


def _with_valid_checksums(data: bytes) -> bytes:
    """Returns the PNG with corrected chunk checksums, so that damage reaches the parsers behind that check."""
    found, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        found.append(_chunk(kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(found) + data[at:]
