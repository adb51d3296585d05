"""Sends one cell over a session's channel and validates the reply.

The reply comes from a process that runs the policy's code, so all of it is untrusted input.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from tools_service.proto import tools_pb2 as pb
from tools_service.sandbox.manager.manager_client import WorkerHandle
from tools_service.sandbox.protocol import frames, png_validator, webp_validator
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.server.cell_outcome import DisplayedImage
from tools_service.server.image_store import SealedImage

_INLINE = 64 << 10  # bytes of images validated on the event loop; more are validated in a thread


class ProtocolError(Exception):
    """The bytes on the channel are no valid reply to the cell."""


@dataclass(frozen=True)
class CellReply:
    status: str  # ok | error | refused (an input image could not be opened)
    message: str
    stdout: str
    stderr: str
    images: list[DisplayedImage]


async def run_cell(
    worker: WorkerHandle, limits: Limits, code: str, images: list[SealedImage], image_format: pb.ImageFormat
) -> CellReply:
    """Sends the cell and returns the validated reply.

    Raises:
        ProtocolError: the first frame received is no reply to this cell (its nonce, content or images are wrong).
        IncompleteReadError, ConnectionError: the session's process ended.
    """
    nonce = secrets.token_hex(16)
    header = {"nonce": nonce, "format": "webp" if image_format == pb.WEBP else "png"}
    fds = [image.fd for image in images]
    await worker.send(header, [code.encode("utf-8", "replace")], fds)
    try:
        header, blobs = await worker.receive(limits.reply_bytes)
    except frames.FrameError as error:
        raise ProtocolError(str(error)) from None
    if header.get("nonce") != nonce:
        raise ProtocolError("not the answer to this cell")
    status, message = header.get("status"), header.get("message", "")
    if status not in ("ok", "error", "refused") or not isinstance(message, str):
        raise ProtocolError("unexpected content")
    if not 2 <= len(blobs) <= 2 + limits.images or max(map(len, blobs[:2])) > (limits.text_kb << 10) + 200:
        raise ProtocolError("more text or pictures than allowed")
    max_pixels = limits.image_megapixels * 1e6
    large = sum(map(len, blobs[2:])) > _INLINE
    shown = (
        await asyncio.to_thread(_validate_images, blobs[2:], max_pixels)
        if large
        else _validate_images(blobs[2:], max_pixels)
    )
    stdout, stderr = (blob.decode("utf-8", "replace") for blob in blobs[:2])
    return CellReply(status, message[:500], stdout, stderr, shown)


def _validate_images(blobs: list[bytes], max_pixels: float) -> list[DisplayedImage]:
    shown = []
    for data in blobs:
        validator, mime = (webp_validator, "image/webp") if data[:4] == b"RIFF" else (png_validator, "image/png")
        try:
            data, width, height = validator.validate(data, max_pixels)
        except png_validator.InvalidImage as error:
            raise ProtocolError(str(error)) from None
        shown.append(DisplayedImage(data, mime, width, height))
    return shown
