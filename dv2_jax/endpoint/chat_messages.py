"""Builds the content of chat messages: text, and images as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import PIL.Image

_FORMATS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"))


def image_part(encoded: bytes) -> dict[str, Any]:
    """Returns an encoded image as a part of a message. PNG, JPEG, GIF and WebP are sent as they are, others as PNG."""
    kind = next((kind for magic, kind in _FORMATS if encoded.startswith(magic)), "")
    if not kind and encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        kind = "webp"
    if not kind:
        buffer = io.BytesIO()
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGB").save(buffer, format="PNG")
        kind, encoded = "png", buffer.getvalue()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"}}


def chat_content(text: str, images: Sequence[bytes], marker: str) -> str | list[dict[str, Any]]:
    """Returns the content of a message: text in which each `marker` stands for the next image; plain text without images.

    Raises:
        ValueError: the numbers of markers and images differ.
        OSError: an image cannot be decoded.
    """
    if not images:
        return text
    first, *others = text.split(marker)
    if len(others) != len(images):
        raise ValueError(f"{len(others)} {marker} markers for {len(images)} images in {text[:80]!r}")
    parts = [{"type": "text", "text": first}]
    for image, after in zip(images, others, strict=True):
        parts += [image_part(image), {"type": "text", "text": after}]
    return [part for part in parts if part["type"] != "text" or part["text"].strip()]
