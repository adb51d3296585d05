"""Tests the search for repeated images on photographs of installed packages, with planted copies.

Catches: a copy in another format, size or frame that is missed, unrelated images that match, noise of uniform images.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from dv2_jax.curation.image_overlap import ImageOverlapIndex, decode_gray, hamming, perceptual_hash

NAMES = ("astronaut", "camera", "coffee", "chelsea", "rocket", "coins", "page", "text", "moon", "brick")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def index() -> ImageOverlapIndex:
    found = ImageOverlapIndex()
    for name in NAMES:
        found.add(name, encode(photograph(name)))
    return found


def matches(index: ImageOverlapIndex, data: bytes) -> dict[str, str]:
    return {match.other: match.kind for match in index.matches(data)}


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_found_and_nothing_else(index, name):
    image = photograph(name)
    assert matches(index, encode(image)) == {name: "equal"}
    assert matches(index, encode(image, "BMP")) == {name: "equal"}, "equal pixels in another format"
    assert matches(index, encode(image, "JPEG", quality=60)) == {name: "near"}
    small = image.resize((image.width * 2 // 3, image.height * 2 // 3))
    assert matches(index, encode(small)) == {name: "near"}


def test_crops_are_found_in_both_directions(index):
    """Recall on random crops of more than 45 % of each side is at least 80 %, without a wrong match."""
    rng = np.random.default_rng(0)
    found = total = 0
    for name in ("astronaut", "coffee", "chelsea", "rocket", "coins", "page"):
        image = photograph(name)
        for share in (0.8, 0.6, 0.5):
            width, height = round(image.width * share), round(image.height * share)
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            crop = image.crop((left, top, left + width, top + height)).resize((width * 5 // 4, height * 5 // 4))
            result = matches(index, encode(crop, "JPEG", quality=80))
            assert set(result) <= {name}
            found, total = found + (name in result), total + 1
    assert found >= 0.8 * total, (found, total)
    crop = photograph("coffee").crop((100, 60, 500, 360))
    crops = ImageOverlapIndex()
    crops.add("crop", encode(crop))
    assert matches(crops, encode(photograph("coffee"))) == {"crop": "crop"}


def test_uniform_images_match_only_if_equal(index):
    gray = [encode(Image.new("RGB", (80, 60), (level,) * 3)) for level in (120, 121)]
    assert matches(index, gray[0]) == {}
    found = ImageOverlapIndex()
    found.add("gray", gray[0])
    assert matches(found, gray[0]) == {"gray": "equal"} and matches(found, gray[1]) == {}


def test_transparency_is_white_and_orientation_is_applied():
    image = photograph("coffee")
    clear = image.copy()
    clear.putalpha(255)
    assert matches_one(encode(image), encode(clear)) == "equal"
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to view
    assert matches_one(encode(image), encode(turned, "JPEG", exif=exif, quality=95)) == "near"


def matches_one(first: bytes, second: bytes) -> str:
    found = ImageOverlapIndex()
    found.add("a", first)
    return matches(found, second).get("a", "")


def test_hash_distance_is_small_for_copies_and_large_for_others():
    hashes = {name: perceptual_hash(decode_gray(encode(photograph(name)))) for name in NAMES}
    distances = [hamming(hashes[a], hashes[b]) for a in NAMES for b in NAMES if a < b]
    assert min(distances) > 10


def test_what_is_no_image_raises():
    with pytest.raises(OSError):
        ImageOverlapIndex().add("a", b"no image")
