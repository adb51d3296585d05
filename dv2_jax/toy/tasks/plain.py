"""Plain questions: answerable without tools, so that needless tool use can be measured."""

from __future__ import annotations

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing
from dv2_jax.toy.tasks.facts import Split

DIGIT_PHRASES = ("Which digit is shown?", "What digit do you see?", "Read the large digit.")
COLOR_PHRASES = ("Which colour is the frame?", "What colour do you see around the digit?", "Name the frame's colour.")


def _question(rng: np.random.Generator, split: Split, name: str, kind: str) -> Question:
    color = str(rng.choice(list(drawing.COLORS)))
    image, label = drawing.digit_plate(rng, split, drawing.COLORS[color])
    phrases = DIGIT_PHRASES if kind == "digit" else COLOR_PHRASES
    # The reward of data_source "search" subtracts a tenth of the accuracy after a search, so needless ones cost.
    return Question(
        id=name,
        skill="plain",
        data_source="search",
        text=str(rng.choice(phrases)),
        images=(drawing.encode(image),),
        answer=str(label) if kind == "digit" else color,
        verifier="text",
        meta={"kind": kind},
    )


def digit_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    return _question(rng, split, name, "digit")


def frame_color_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    return _question(rng, split, name, "frame_colour")


KINDS = (digit_question, frame_color_question)
