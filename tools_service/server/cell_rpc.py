"""One cell and its answer over a session's channel. Everything in the answer is checked: it is the policy's word."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import Worker
from tools_service.sandbox.protocol import frames, png_validator, webp_validator
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.server.image_store import Picture

_INLINE = 64 << 10  # bytes of pictures that are checked at once; more are checked in a thread


class BadReply(Exception):
    """What came back is not an answer to the cell."""


@dataclass(frozen=True)
class Shown:
    """A picture that a cell showed."""

    data: bytes
    mime: str
    width: int
    height: int


@dataclass(frozen=True)
class Reply:
    status: str  # ok | error | refused: an input picture could not be opened
    message: str
    stdout: str
    stderr: str
    pictures: list[Shown]


async def ask(
    worker: Worker, limits: Limits, code: str, pictures: list[Picture], image_format: pb.ImageFormat
) -> Reply:
    """Sends the cell and takes the first frame. Raises BadReply, or EOFError and ConnectionError at the end."""
    nonce = secrets.token_hex(16)
    header = {"nonce": nonce, "format": "webp" if image_format == pb.WEBP else "png"}
    handles = [picture.handle for picture in pictures]
    await worker.send(header, [code.encode("utf-8", "replace")], handles)
    try:
        header, blobs = await worker.receive(limits.reply_bytes)
    except frames.FrameError as error:
        raise BadReply(str(error)) from None
    if header.get("nonce") != nonce:
        raise BadReply("not the answer to this cell")
    status, message = header.get("status"), header.get("message", "")
    if status not in ("ok", "error", "refused") or not isinstance(message, str):
        raise BadReply("unexpected content")
    if not 2 <= len(blobs) <= 2 + limits.images or max(map(len, blobs[:2])) > (limits.text_kb << 10) + 200:
        raise BadReply("more text or pictures than allowed")
    most = limits.image_megapixels * 1e6
    large = sum(map(len, blobs[2:])) > _INLINE
    shown = await asyncio.to_thread(_check, blobs[2:], most) if large else _check(blobs[2:], most)
    stdout, stderr = (blob.decode("utf-8", "replace") for blob in blobs[:2])
    return Reply(status, message[:500], stdout, stderr, shown)


def _check(blobs: list[bytes], max_pixels: float) -> list[Shown]:
    shown = []
    for data in blobs:
        kind, mime = (webp_validator, "image/webp") if data[:4] == b"RIFF" else (png_validator, "image/png")
        try:
            data, width, height = kind.check(data, max_pixels)
        except png_validator.BadPicture as error:
            raise BadReply(str(error)) from None
        shown.append(Shown(data, mime, width, height))
    return shown
