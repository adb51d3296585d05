"""Converts images between the sandbox and the model: inputs of a code cell, and images that a tool returned."""

from __future__ import annotations

import io
import math

import PIL.Image

from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.images import MAX_ASPECT, ImageError, load_image, smart_resize
from dv2_jax.data.question import Question

MIN_SIDE = 32  # pixels; as released


def returned_image_size(width: int, height: int) -> tuple[int, int]:
    """Returns the size in pixels at which a tool's image of `width` × `height` is shown to the model (as released).

    A strip with an aspect ratio above 200 is shortened to `short side × min(150, ratio / 2)`; then a short side
    below 32 pixels is scaled up to 32. Any other image keeps its size.
    """
    short, long = min(width, height), max(width, height)
    if long / short > MAX_ASPECT:
        long = int(short * min(150, long / short / 2))
        width, height = (long, short) if width > height else (short, long)
    if min(width, height) < MIN_SIDE:
        scale = MIN_SIDE / min(width, height)
        width, height = math.ceil(width * scale), math.ceil(height * scale)
    return width, height


def fit_returned_image(encoded: bytes) -> bytes | None:
    """Returns `encoded` unchanged where its size suits the model, else resized (Lanczos) and encoded as PNG.

    Returns None for an image that cannot be decoded, so that one bad image does not end a trajectory.
    """
    try:
        image = load_image(encoded)
    except ImageError:
        return None
    size = returned_image_size(*image.size)
    if size == image.size:
        return encoded
    return _encode_png(image.resize(size, PIL.Image.Resampling.LANCZOS))


def sandbox_images(question: Question, agent: AgentConfig, image_config: ImageConfig) -> tuple[bytes, ...]:
    """Returns the encoded images that a code cell finds as `image_1` ... `image_n`.

    With `agent.code_images="native"` these are the question's own files; with `"view"` they are resized to the
    resolution that the model sees, so that pixel coordinates agree between code and model.
    """
    if agent.code_images == "native":
        return question.images
    views = []
    for encoded in question.images:
        image = load_image(encoded)
        height, width = smart_resize(
            image.height, image.width, min_pixels=image_config.min_pixels, max_pixels=image_config.max_pixels
        )
        views.append(_encode_png(image.resize((width, height), PIL.Image.Resampling.BICUBIC)))
    return tuple(views)


def _encode_png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
