"""Pictures of the default tasks, composed from what scikit-image and scikit-learn ship.

Photographs and handwritten digits are split between training and held-out questions, so that no picture
content is shared. Sizes are in pixels; every function is deterministic in its generator.
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

SCENE = (1152, 896)  # width, height of a perception picture: 1.03 megapixels
DIGIT = 28  # side of a digit in a scene; under 2 pixels in the tiny model's capped view
TAG = 36  # side of the plate around it
MARGIN = 200  # a tag's centre keeps this distance from the border, so that wide crops stay centred

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 240),
    "yellow": (250, 230, 10),
    "purple": (200, 20, 220),
}


def encode(image: Image.Image, quality: int = 88) -> bytes:
    """JPEG bytes without chroma subsampling, so that small coloured marks keep their colour."""
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
    """All 1,797 handwritten digits of scikit-learn, ink dark on light, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (255 - data.images * (240 / 16)).astype(np.uint8), data.target


@functools.cache
def digit_indices(split: Split) -> np.ndarray:
    indices = np.arange(len(digits()[1]))
    held_out = indices % 5 == 0
    return indices[held_out if split == "eval" else ~held_out]


def random_digit(rng: np.random.Generator, split: Split) -> tuple[Image.Image, int]:
    """One digit as an 8x8 greyscale picture, and its label."""
    images, labels = digits()
    index = int(rng.choice(digit_indices(split)))
    return Image.fromarray(images[index]), int(labels[index])


def background(rng: np.random.Generator, split: Split, size: tuple[int, int]) -> Image.Image:
    """A random part of a photograph at the given size, sometimes mirrored."""
    photo = photograph(str(rng.choice(PHOTOGRAPHS[split])))
    scale = rng.uniform(0.6, 1.0)
    width = int(photo.width * scale)
    height = min(photo.height, int(width * size[1] / size[0]))
    left = int(rng.integers(photo.width - width + 1))
    top = int(rng.integers(photo.height - height + 1))
    part = photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def tag(digit: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """A plate of the given colour with a digit in its middle, TAG pixels wide."""
    plate = Image.new("RGB", (TAG, TAG), colour)
    edge = (TAG - DIGIT) // 2
    plate.paste(digit.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC).convert("RGB"), (edge, edge))
    return plate


def scatter(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Centres of `count` tags, so far apart that a wide crop around one shows no other near its middle."""
    centres: list[tuple[int, int]] = []
    while len(centres) < count:
        x = int(rng.integers(MARGIN, SCENE[0] - MARGIN))
        y = int(rng.integers(MARGIN, SCENE[1] - MARGIN))
        if all(max(abs(x - u), abs(y - v)) >= 2 * TAG for u, v in centres):
            centres.append((x, y))
    return centres


def scene(
    rng: np.random.Generator, split: Split, colours: list[tuple[int, int, int]]
) -> tuple[Image.Image, list[tuple[int, int]], list[int]]:
    """A photograph of 1.03 megapixels with one tagged digit per colour; its centres and labels."""
    picture = background(rng, split, SCENE)
    centres, labels = scatter(rng, len(colours)), []
    for (x, y), colour in zip(centres, colours, strict=True):
        digit, label = random_digit(rng, split)
        picture.paste(tag(digit, colour), (x - TAG // 2, y - TAG // 2))
        labels.append(label)
    return picture, centres, labels


def read_digit(region: Image.Image) -> int:
    """Label of the shipped digit nearest to a picture of one digit (how a person would read the plate)."""
    images, labels = digits()
    seen = np.asarray(region.convert("L").resize((8, 8), Image.Resampling.BOX), np.float32)
    distance = ((images.astype(np.float32) - seen) ** 2).sum((1, 2))
    return int(labels[int(distance.argmin())])


def plate(rng: np.random.Generator, split: Split, colour: tuple[int, int, int]) -> tuple[Image.Image, int]:
    """One digit that fills the picture, inside a coloured frame, readable at sight; and its label."""
    digit, label = random_digit(rng, split)
    side = int(rng.integers(100, 180))
    picture = Image.new("RGB", (side, side), colour)
    inner = int(side * 0.8)
    picture.paste(digit.resize((inner, inner), Image.Resampling.BICUBIC).convert("RGB"), ((side - inner) // 2,) * 2)
    return picture, label


def tile(entity: str, split: Split) -> Image.Image:
    """The picture that stands for an entity in the image index: its own part of a photograph, 240 pixels wide."""
    import hashlib

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(entity.encode()).digest()[:8], "little"))
    while True:
        photo = photograph(str(rng.choice(PHOTOGRAPHS[split])))
        side = int(rng.integers(110, 200))
        left, top = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
        part = photo.crop((left, top, left + side, top + side))
        if np.asarray(part.convert("L")).std() > 18:  # skies and walls look alike
            return part.resize((240, 240), Image.Resampling.BICUBIC)


def view_of_tile(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The same picture as another camera would store it: another size and brightness."""
    side = int(rng.integers(180, 300))
    factor = rng.uniform(0.9, 1.1)
    return picture.resize((side, side), Image.Resampling.BICUBIC).point(lambda value: int(min(255, value * factor)))
