"""Compares preprocessing with transformers' PIL processor, and tests decoding of image files of many kinds."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dv2_jax.data.images import ImageError, ImageFile, load_image, preprocess, smart_resize

LIMITS = [(56 * 56, 28 * 28 * 1280), (56 * 56, 112 * 112), (200_704, 262_144)]


def noisy(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 4))
    channels = np.stack([3 * x + y, 2 * y, x * y // 5, 5 * x], -1)
    return Image.fromarray(((channels + noise) % 256).astype(np.uint8), "RGBA").convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_sizes_equal_those_of_transformers_on_ten_thousand_images():
    """Catches a wrong rounding: many sides are half-way between two multiples, where rounding to even matters."""
    oracle = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    rng = np.random.default_rng(0)
    sides = np.where(
        rng.random((10_500, 2)) < 0.3, 14 * rng.integers(1, 300, (10_500, 2)), rng.integers(14, 4000, (10_500, 2))
    )
    sides = [pair for pair in sides.tolist() if max(pair) <= 200 * min(pair)][:10_000]
    assert len(sides) == 10_000
    for i, (height, width) in enumerate(sides):
        low, high = LIMITS[i % len(LIMITS)]
        assert smart_resize(height, width, min_pixels=low, max_pixels=high) == oracle(
            height, width, min_pixels=low, max_pixels=high
        )


@pytest.mark.parametrize(("height", "width"), [(56, 56), (300, 200), (111, 513), (1000, 37), (40, 30), (719, 1283)])
@pytest.mark.parametrize("limits", LIMITS[:2])
def test_patches_equal_those_of_the_pil_processor(height, width, limits):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = noisy(height, width)
    processor = module.Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
    theirs = processor([image], return_tensors="np")
    patches, grid = preprocess(image, min_pixels=limits[0], max_pixels=limits[1])
    assert grid == tuple(theirs["image_grid_thw"][0])
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-6)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # by 90 degrees
    return exif


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {"quality": 90}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("L", "PNG", {}),
        ("CMYK", "TIFF", {}),
        ("RGB", "JPEG", {"exif": turned()}),
        ("L", "PNG", {"exif": turned()}),
    ],
)
def test_files_of_every_kind_give_the_patches_of_the_pil_processor(tmp_path, mode, form, options):
    """Catches a different color conversion, and an unapplied EXIF orientation (the oracle's readers apply it)."""
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    file = tmp_path / "image"
    file.write_bytes(encoded(noisy(120, 90, mode), form, **options))
    theirs = module.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112)(
        [ImageOps.exif_transpose(Image.open(file))], return_tensors="np"
    )
    patches, grid = preprocess(file, min_pixels=56 * 56, max_pixels=112 * 112)
    assert grid == tuple(theirs["image_grid_thw"][0])
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-6)


def test_sixteen_bit_grays_give_the_patches_of_their_eight_bit_selves(tmp_path):
    """The oracle is the PIL processor on the image in 8 bits, because it clips 16 bits to white."""
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    levels = np.asarray(noisy(120, 90, "L")).astype(np.uint16)
    Image.fromarray(levels * 257).save(tmp_path / "wide.png")
    processor = module.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112)
    theirs = processor([Image.fromarray(levels.astype(np.uint8))], return_tensors="np")["pixel_values"]
    patches, _ = preprocess(tmp_path / "wide.png", min_pixels=56 * 56, max_pixels=112 * 112)
    np.testing.assert_allclose(patches, theirs, atol=1e-6)
    assert processor([Image.open(tmp_path / "wide.png")], return_tensors="np")["pixel_values"].min() > theirs.min()


def test_transparency_is_composited_over_white():
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    assert load_image(encoded(image, "PNG")).getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert load_image(encoded(palette, "PNG", transparency=1)).getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = load_image(encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_allclose(np.asarray(image)[..., 0], levels / 257, atol=0.5)


def test_photographs_are_turned_upright():
    image = noisy(60, 100)
    upright = load_image(encoded(image, "PNG", exif=turned()))
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(image.rotate(-90, expand=True)))


@pytest.mark.parametrize("source", ["bytes", "path"])
def test_bytes_and_paths_read_alike(tmp_path, source):
    image = noisy(70, 50)
    data = encoded(image, "PNG")
    (tmp_path / "x.png").write_bytes(data)
    np.testing.assert_array_equal(
        np.asarray(load_image(data if source == "bytes" else tmp_path / "x.png")), np.asarray(image)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not an image", "cannot read an image from 12 bytes"),
        (encoded(noisy(200, 200), "PNG")[:3000], "cannot read an image"),
        (encoded(noisy(200, 200), "JPEG")[:900], "cannot read an image"),
        (b"", "cannot read an image from 0 bytes"),
    ],
)
def test_broken_files_are_named_not_guessed(data, message):
    with pytest.raises(ImageError, match=message):
        load_image(data)


def test_missing_files_and_extreme_aspect_ratios_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no image at"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="more than 200 times"):
        smart_resize(10, 2001, min_pixels=1, max_pixels=10**6)


def bomb() -> bytes:
    """Returns a PNG of a hundred bytes whose header declares 30,000 by 30,000 pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "exceeds limit"),
        (encoded(noisy(200, 200), "PNG")[:3000], "truncated"),
        (encoded(noisy(200, 200), "JPEG")[:900], "truncated"),
        (encoded(Image.new("RGB", (2001, 10)), "PNG"), "more than 200 times as long as wide"),
    ],
    ids=["bomb", "truncated png", "truncated jpeg", "ribbon"],
)
def test_an_unusable_image_is_an_error_that_names_the_file(tmp_path, data, message):
    """Catches an error that names `1234 bytes` instead of the file, for a path and for the bytes of a row's file."""
    file = tmp_path / "holiday.png"
    file.write_bytes(data)
    for source in (file, str(file), ImageFile.read(file)):
        with pytest.raises(ImageError, match=f"holiday.png.*{message}"):
            preprocess(source, min_pixels=56 * 56, max_pixels=112 * 112)
