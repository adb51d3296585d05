"""Perception questions: a digit that is under two pixels wide in the model's downscaled view of a megapixel scene."""

from __future__ import annotations

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing
from dv2_jax.toy.tasks.facts import Split

PLAIN_PLATE = (245, 245, 240)

POINT_PHRASES = (
    "Which digit is written at x={x}, y={y}?",
    "What digit stands at x={x}, y={y}?",
    "Read the digit at x={x}, y={y}.",
)
COLOR_PHRASES = (
    "Which digit is on the {color} tag?",
    "What digit does the {color} tag carry?",
    "Read the digit on the {color} tag.",
)


def point_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    """Asks for the digit at a position given in pixels of the image."""
    image, centers, labels = drawing.scene(rng, split, [PLAIN_PLATE] * 6)
    (x, y), label = centers[0], labels[0]
    return Question(
        id=name,
        skill="perception",
        data_source="perception",
        text=str(rng.choice(POINT_PHRASES)).format(x=x, y=y),
        images=(drawing.encode(image),),
        answer=str(label),
        meta={"kind": "point", "x": x, "y": y},
    )


def color_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    """Asks for the digit on the tag of a given color; the tag's position has to be measured."""
    names = [str(item) for item in rng.permutation(list(drawing.COLORS))]
    while True:
        image, centers, labels = drawing.scene(rng, split, [drawing.COLORS[item] for item in names])
        encoded = drawing.encode(image)
        if _is_unique_color(drawing.load(encoded), drawing.COLORS[names[0]], centers[0]):
            break
    return Question(
        id=name,
        skill="perception",
        data_source="perception",
        text=str(rng.choice(COLOR_PHRASES)).format(color=names[0]),
        images=(encoded,),
        answer=str(labels[0]),
        meta={"kind": "colour", "colour": names[0]},
    )


def near_color(pixels: np.ndarray, value: tuple[int, int, int]) -> np.ndarray:
    """Returns the mask [H, W] of the pixels within 60 (sum over channels) of a color."""
    return np.abs(pixels.astype(int) - value).sum(2) < 60


def _is_unique_color(image, value: tuple[int, int, int], center: tuple[int, int]) -> bool:
    """Returns True if no pixel outside the tag has the tag's color."""
    y, x = np.nonzero(near_color(np.asarray(image), value))
    half = drawing.TAG // 2 + 1
    return len(x) > 0 and bool(
        (np.abs(x - center[0]) <= half).all()
        and (np.abs(y - center[1]) <= half).all()
        and x.max() - x.min() > drawing.DIGIT
    )


KINDS = (point_question, color_question)
