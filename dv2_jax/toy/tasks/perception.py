"""Perception: read a digit that is under two pixels wide in the model's capped view of a megapixel scene."""

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
COLOUR_PHRASES = (
    "Which digit is on the {colour} tag?",
    "What digit does the {colour} tag carry?",
    "Read the digit on the {colour} tag.",
)


def point(rng: np.random.Generator, split: Split, name: str) -> Question:
    """The question names the place in pixels of the picture."""
    picture, centres, labels = drawing.scene(rng, split, [PLAIN_PLATE] * 6)
    (x, y), label = centres[0], labels[0]
    return Question(
        id=name,
        skill="perception",
        data_source="perception",
        text=str(rng.choice(POINT_PHRASES)).format(x=x, y=y),
        images=(drawing.encode(picture),),
        answer=str(label),
        meta={"kind": "point", "x": x, "y": y},
    )


def colour(rng: np.random.Generator, split: Split, name: str) -> Question:
    """The question names the colour of the tag, whose place has to be measured."""
    names = [str(item) for item in rng.permutation(list(drawing.COLOURS))]
    while True:
        picture, centres, labels = drawing.scene(rng, split, [drawing.COLOURS[item] for item in names])
        encoded = drawing.encode(picture)
        if _stands_alone(drawing.load(encoded), drawing.COLOURS[names[0]], centres[0]):
            break
    return Question(
        id=name,
        skill="perception",
        data_source="perception",
        text=str(rng.choice(COLOUR_PHRASES)).format(colour=names[0]),
        images=(encoded,),
        answer=str(labels[0]),
        meta={"kind": "colour", "colour": names[0]},
    )


def near_colour(pixels: np.ndarray, value: tuple[int, int, int]) -> np.ndarray:
    """Mask [H, W] of the pixels within 60 (sum over channels) of a colour."""
    return np.abs(pixels.astype(int) - value).sum(2) < 60


def _stands_alone(picture, value: tuple[int, int, int], centre: tuple[int, int]) -> bool:
    """Whether the photograph itself has no pixel of the tag's colour."""
    y, x = np.nonzero(near_colour(np.asarray(picture), value))
    half = drawing.TAG // 2 + 1
    return len(x) > 0 and bool(
        (np.abs(x - centre[0]) <= half).all()
        and (np.abs(y - centre[1]) <= half).all()
        and x.max() - x.min() > drawing.DIGIT
    )


KINDS = (point, colour)
