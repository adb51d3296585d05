"""Composes the images of the default tasks from the data of scikit-image and scikit-learn.

Photographs and handwritten digits are split between training and held-out questions, so that no image content is
shared. Sizes are in pixels; every function is deterministic in its generator.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dv2_jax.toy.tasks.facts import Split

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "brick.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "china.jpg",
    ),
    "eval": ("camera.png", "gravel.png", "retina.jpg", "rocket.jpg", "flower.jpg"),
}  # fmt: skip

SCENE = (1152, 896)  # width, height of a perception image: 1.03 megapixels
DIGIT = 28  # side of a digit in a scene; under 2 pixels in the tiny model's downscaled view
TAG = 36  # side of the colored tag around a digit
MARGIN = 200  # minimum distance of a tag's center from the border, so that wide crops remain centered

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 240),
    "yellow": (250, 230, 10),
    "purple": (200, 20, 220),
}


def encode(image: Image.Image, quality: int = 88) -> bytes:
    """Encodes an image as JPEG without chroma subsampling, so that small colored tags keep their color."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def load(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@functools.cache
def photograph(name: str) -> Image.Image:
    import skimage
    import sklearn.datasets

    for package, folder in ((skimage, "data"), (sklearn.datasets, "images")):
        path = Path(package.__file__).parent / folder / name
        if path.exists():
            return Image.open(path).convert("RGB")
    raise FileNotFoundError(f"neither scikit-image nor scikit-learn ships {name}")


@functools.cache
def digits() -> tuple[UInt8[np.ndarray, "N 8 8"], np.ndarray]:
    """Returns all 1,797 handwritten digits of scikit-learn, ink dark on light, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (255 - data.images * (240 / 16)).astype(np.uint8), data.target


@functools.cache
def digit_indices(split: Split) -> np.ndarray:
    indices = np.arange(len(digits()[1]))
    held_out = indices % 5 == 0
    return indices[held_out if split == "eval" else ~held_out]


def random_digit(rng: np.random.Generator, split: Split) -> tuple[Image.Image, int]:
    """Returns one digit as an 8x8 grayscale image, and its label."""
    images, labels = digits()
    index = int(rng.choice(digit_indices(split)))
    return Image.fromarray(images[index]), int(labels[index])


def background(rng: np.random.Generator, split: Split, size: tuple[int, int]) -> Image.Image:
    """Returns a random part of a photograph at the given size, mirrored with probability one half."""
    photo = photograph(str(rng.choice(PHOTOGRAPHS[split])))
    scale = rng.uniform(0.6, 1.0)
    width = int(photo.width * scale)
    height = min(photo.height, int(width * size[1] / size[0]))
    left = int(rng.integers(photo.width - width + 1))
    top = int(rng.integers(photo.height - height + 1))
    part = photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def digit_tag(digit: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Returns a square tag of the given color with a digit at its center, TAG pixels wide."""
    tag = Image.new("RGB", (TAG, TAG), color)
    edge = (TAG - DIGIT) // 2
    tag.paste(digit.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC).convert("RGB"), (edge, edge))
    return tag


def scatter(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Returns the centers of `count` tags, so far apart that a crop around one shows no other near its center."""
    centers: list[tuple[int, int]] = []
    while len(centers) < count:
        x = int(rng.integers(MARGIN, SCENE[0] - MARGIN))
        y = int(rng.integers(MARGIN, SCENE[1] - MARGIN))
        if all(max(abs(x - u), abs(y - v)) >= 2 * TAG for u, v in centers):
            centers.append((x, y))
    return centers


def scene(
    rng: np.random.Generator, split: Split, colors: list[tuple[int, int, int]]
) -> tuple[Image.Image, list[tuple[int, int]], list[int]]:
    """Returns a photograph of 1.03 megapixels with one tagged digit per color, the tags' centers and the labels."""
    image = background(rng, split, SCENE)
    centers, labels = scatter(rng, len(colors)), []
    for (x, y), color in zip(centers, colors, strict=True):
        digit, label = random_digit(rng, split)
        image.paste(digit_tag(digit, color), (x - TAG // 2, y - TAG // 2))
        labels.append(label)
    return image, centers, labels


def read_digit(region: Image.Image) -> int:
    """Returns the label of the scikit-learn digit that is nearest to an image of one digit."""
    images, labels = digits()
    pixels = np.asarray(region.convert("L").resize((8, 8), Image.Resampling.BOX), np.float32)
    distance = ((images.astype(np.float32) - pixels) ** 2).sum((1, 2))
    return int(labels[int(distance.argmin())])


def digit_plate(rng: np.random.Generator, split: Split, color: tuple[int, int, int]) -> tuple[Image.Image, int]:
    """Returns an image of one large digit inside a colored frame, readable without a tool, and its label."""
    digit, label = random_digit(rng, split)
    side = int(rng.integers(100, 180))
    image = Image.new("RGB", (side, side), color)
    inner = int(side * 0.8)
    edge = (side - inner) // 2
    image.paste(digit.resize((inner, inner), Image.Resampling.BICUBIC).convert("RGB"), (edge, edge))
    return image, label


def entity_image(entity: str, split: Split) -> Image.Image:
    """Returns the image of an entity in the image index: a part of a photograph, chosen by name, 240 pixels wide."""
    import hashlib

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(entity.encode()).digest()[:8], "little"))
    while True:
        photo = photograph(str(rng.choice(PHOTOGRAPHS[split])))
        side = int(rng.integers(110, 200))
        left, top = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
        part = photo.crop((left, top, left + side, top + side))
        if np.asarray(part.convert("L")).std() > 18:  # reject skies and walls, which are too similar
            return part.resize((240, 240), Image.Resampling.BICUBIC)


def rephotographed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Returns the image at another size and brightness."""
    side = int(rng.integers(180, 300))
    factor = rng.uniform(0.9, 1.1)
    return image.resize((side, side), Image.Resampling.BICUBIC).point(lambda value: int(min(255, value * factor)))
