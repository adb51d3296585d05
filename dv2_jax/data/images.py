"""Preprocesses images for the model: decodes to RGB, resizes to multiples of a merge unit, and cuts into patches."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from dv2_jax.model.image_grid import IMAGE_MEAN, IMAGE_STD

PATCH = 14  # patch size in pixels per side
MERGE = 2  # spatial merge size: patches per side of an image token
FRAMES = 2  # temporal patch size; a still image fills both frames
MAX_ASPECT = 200  # long side over short side, as in the released processor

_MEAN, _STD = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
# Lookup table from byte to normalized value, per channel: scaled in float64, then normalized in float32, like the
# released processor.
_LEVELS = (((np.arange(256, dtype=np.float64) / 255).astype(np.float32)[:, None] - _MEAN) / _STD).T.copy()

ImageSource = Image.Image | bytes | str | Path


class ImageError(ValueError):
    """Raised for an image that cannot be decoded or used; the message gives the reason."""


class ImageFile(bytes):
    """An encoded image with its path, so that an error raised by a later decoding can name the file."""

    path: str

    @classmethod
    def read(cls, path: Path) -> ImageFile:
        image = cls(path.read_bytes())
        image.path = str(path)
        return image


def smart_resize(
    height: int, width: int, *, factor: int = PATCH * MERGE, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns (height, width) at which the model sees an image: multiples of `factor`, area in bounds, aspect kept.

    Sides are rounded to the nearest multiple (ties to even, as Python rounds); an image that is then too large is
    scaled down and floored, one too small is scaled up and ceiled.

    Raises:
        ImageError: an empty image, or one with a longer aspect ratio than `MAX_ASPECT`.
    """
    if height < 1 or width < 1:
        raise ImageError(f"image of {width}x{height} pixels is empty")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"image of {width}x{height} pixels is more than {MAX_ASPECT} times as long as wide")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def load_image(source: ImageSource) -> Image.Image:
    """Loads an image as RGB: EXIF orientation applied, transparency composited over white, 16 bits scaled to 8.

    Raises:
        ImageError: the file is missing, truncated, not an image, or above Pillow's limit on decoded size.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"no image at {source}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot read an image from {_name(source)}: {error}") from error


def _name(source: ImageSource) -> str:
    if isinstance(source, bytes):
        return getattr(source, "path", f"{len(source)} bytes")
    return f"an image of {source.width}x{source.height}" if isinstance(source, Image.Image) else str(source)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image).astype(np.float64)
        # Pillow clips 16-bit grays to white instead of scaling them.
        top = 65535 if levels.max(initial=0) > 255 else 255
        image = Image.fromarray(np.clip(np.rint(levels * (255 / top)), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def preprocess(
    image: ImageSource, *, min_pixels: int, max_pixels: int
) -> tuple[Float[np.ndarray, "p 1176"], tuple[int, int, int]]:
    """Returns patches and grid (1, rows, columns), equal to those of transformers' PIL `Qwen2VLImageProcessor`.

    The four patches of a 2x2 merge unit are consecutive, merge units in raster order; a patch is (channel, frame, row,
    column). 16-bit grays are scaled to 8 bits; that processor clips them to white.

    Raises:
        ImageError: the image cannot be decoded or used; the message names the file.
    """
    rgb = load_image(image)
    try:
        height, width = smart_resize(rgb.height, rgb.width, min_pixels=min_pixels, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"cannot use {_name(image)}: {error}") from None
    if (width, height) != rgb.size:
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // PATCH, width // PATCH
    units = np.asarray(rgb).reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    patches = units.transpose(0, 3, 1, 4, 6, 2, 5)  # unit row, unit column, row, column, channel, y, x
    patches = patches.reshape(rows * columns, 3, PATCH * PATCH)
    values = np.empty((rows * columns, 3, FRAMES, PATCH * PATCH), np.float32)
    for channel in range(3):
        values[:, channel] = _LEVELS[channel][patches[:, channel]][:, None]
    return values.reshape(rows * columns, -1), (1, rows, columns)
