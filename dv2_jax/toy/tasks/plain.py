"""Plain: answerable at sight, so that needless tool use shows."""

from __future__ import annotations

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing
from dv2_jax.toy.tasks.facts import Split

DIGIT_PHRASES = ("Which digit is shown?", "What digit do you see?", "Read the large digit.")
COLOUR_PHRASES = ("Which colour is the frame?", "What colour do you see around the digit?", "Name the frame's colour.")


def _question(rng: np.random.Generator, split: Split, name: str, kind: str) -> Question:
    colour = str(rng.choice(list(drawing.COLOURS)))
    picture, label = drawing.plate(rng, split, drawing.COLOURS[colour])
    phrases = DIGIT_PHRASES if kind == "digit" else COLOUR_PHRASES
    # The search split's reward takes a tenth of the accuracy after a search: what teaches when not to search.
    return Question(
        id=name,
        skill="plain",
        data_source="search",
        text=str(rng.choice(phrases)),
        images=(drawing.encode(picture),),
        answer=str(label) if kind == "digit" else colour,
        verifier="text",
        meta={"kind": kind},
    )


def digit(rng: np.random.Generator, split: Split, name: str) -> Question:
    return _question(rng, split, name, "digit")


def colour(rng: np.random.Generator, split: Split, name: str) -> Question:
    return _question(rng, split, name, "frame_colour")


KINDS = (digit, colour)
