"""Tool results and images for the tests of the agent loop."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools_service.common.status import Status


@dataclass(frozen=True)
class Item:
    title: str
    url: str = ""
    snippet: str = ""
    date: str = ""
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Result:
    """The fields of a tool result that an observation is rendered from."""

    status: Status = Status.OK
    stdout: str = ""
    stderr: str = ""
    images: tuple[bytes, ...] = ()
    items: tuple[Item, ...] = ()
    message: str = ""
    restarted: bool = False


def png(width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
