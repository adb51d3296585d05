"""Tests the PNG encoder of sessions: PIL decodes identical pixels, and the server's validator accepts them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tools_service.sandbox.protocol import png_validator
from tools_service.sandbox.worker import display, png_encoder


def noise(mode: str, width: int, height: int) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, bands), np.uint8)
    values[height // 2 :] = 200  # a flat half
    return Image.fromarray(values[:, :, 0] if bands == 1 else values, mode if bands in (1, 2) else None)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (37, 21), (640, 480)])
def test_every_pixel_comes_back(mode, size):
    image = noise(mode, *size)
    assert image.mode == mode and png_encoder.can_encode(image)
    data = display.encode(image, "png")
    passed, width, height = png_validator.validate(data, 1e6)
    found = Image.open(io.BytesIO(passed))
    assert (width, height) == found.size == size and found.mode == mode
    assert np.array_equal(np.asarray(found), np.asarray(image))


def test_modes_that_the_encoder_would_lose_fall_back_to_pil():
    """Catches loss of palettes, 1-bit and 16-bit pixels, CMYK, and transparent color keys."""
    clear = Image.new("RGB", (9, 9), (1, 2, 3))
    clear.info["transparency"] = (1, 2, 3)
    for image in (
        Image.new("P", (9, 9)),
        Image.new("1", (9, 9)),
        Image.new("I;16", (9, 9)),
        Image.new("CMYK", (9, 9)),
        clear,
    ):
        assert not png_encoder.can_encode(image)
        assert png_validator.validate(display.encode(image, "png"), 1e6)[1:] == (9, 9)
    found = Image.open(io.BytesIO(display.encode(clear, "png")))
    assert found.convert("RGBA").getpixel((0, 0))[3] == 0


def test_the_size_is_about_that_of_the_quickest_compression_of_pil():
    """Catches a row filter that defeats compression: the size of a photograph would double."""
    import skimage.data

    image = Image.fromarray(skimage.data.astronaut())
    usual = io.BytesIO()
    image.save(usual, "PNG", compress_level=1)
    assert len(display.encode(image, "png")) < 1.1 * len(usual.getvalue())
