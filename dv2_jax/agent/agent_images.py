"""Pictures between the sandbox and the model: what goes in, and what a returned one must look like."""

from __future__ import annotations

import io
import math

import PIL.Image

from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.images import ImageError, load_image, smart_resize
from dv2_jax.data.question import Question

MIN_SIDE = 32  # pixels; as released
MAX_ASPECT = 200  # long side over short side; the vision preprocessing refuses more


def returned_size(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture of ``width`` × ``height`` pixels is given back (spec 2.7).

    An extreme strip is shortened to ``short side × min(150, ratio / 2)``; then a short side below 32 pixels is
    scaled up to 32. Any other picture keeps its size.
    """
    short, long = min(width, height), max(width, height)
    if long / short > MAX_ASPECT:
        long = int(short * min(150, long / short / 2))
        width, height = (long, short) if width > height else (short, long)
    if min(width, height) < MIN_SIDE:
        scale = MIN_SIDE / min(width, height)
        width, height = math.ceil(width * scale), math.ceil(height * scale)
    return width, height


def returned_picture(encoded: bytes) -> bytes | None:
    """``encoded`` fit for the model: itself where its size is fine, resized (Lanczos, PNG) where not.

    None for what cannot be decoded: one bad picture must not cost a trajectory.
    """
    try:
        picture = load_image(encoded)
    except ImageError:
        return None
    size = returned_size(*picture.size)
    return encoded if size == picture.size else _png(picture.resize(size, PIL.Image.Resampling.LANCZOS))


def sandbox_pictures(question: Question, agent: AgentConfig, image: ImageConfig) -> tuple[bytes, ...]:
    """The encoded pictures that code finds as ``image_1`` ... ``image_n``.

    ``agent.code_images``: ``native`` gives the question's own files; ``view`` gives them at the resolution the
    model sees, so that coordinates mean the same to both.
    """
    if agent.code_images == "native":
        return question.images
    views = []
    for encoded in question.images:
        picture = load_image(encoded)
        height, width = smart_resize(
            picture.height, picture.width, min_pixels=image.min_pixels, max_pixels=image.max_pixels
        )
        views.append(_png(picture.resize((width, height), PIL.Image.Resampling.BICUBIC)))
    return tuple(views)


def _png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
