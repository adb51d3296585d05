"""Tests the decision on pairs of questions with images.

Catches: the same words about another image dropped as a duplicate, an image of a benchmark that leaks into a set with another
question, several questions about one image dropped within a set.
"""

from __future__ import annotations

import io

import pytest
import skimage.data
from PIL import Image

from dv2_jax.curation.overlap import OverlapIndex
from dv2_jax.data.question import Question

TEXT = "How many small round objects are there in the upper left part of the photograph in total?"
OTHER = "Which of the objects near the right border is the brightest one, and what is its color?"


def image(name: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(out, options.pop("kind", "PNG"), **options)
    return out.getvalue()


def question(text: str, *images: bytes) -> Question:
    return Question("q", "perception", "perception", text, images, "1")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return {"coins": image("coins"), "coffee": image("coffee"), "coins again": image("coins", kind="JPEG", quality=70)}


@pytest.mark.parametrize(
    "text, name, against_benchmarks, within_set",
    [
        (TEXT, "coins", True, True),
        (TEXT, "coins again", True, True),
        (OTHER, "coins again", True, None),  # None: no pair at all
        (TEXT, "coffee", None, None),
        (OTHER, "coffee", None, None),
    ],
)
def test_pairs(images, text, name, against_benchmarks, within_set):
    for suffices, wanted in ((True, against_benchmarks), (False, within_set)):
        index = OverlapIndex(image_suffices=suffices)
        index.add("first", question(TEXT, images["coins"]))
        found = {overlap.other: overlap.drop for overlap in index.overlaps(question(text, images[name]))}
        assert found == ({} if wanted is None else {"first": wanted})


def test_questions_without_images_match_by_their_words():
    index = OverlapIndex(image_suffices=False)
    index.add("first", question(TEXT))
    (overlap,) = index.overlaps(question(TEXT.lower()))
    assert overlap.drop and overlap.reason == "equal question"


def test_a_broken_image_costs_nothing_but_its_comparison(images):
    index = OverlapIndex(image_suffices=True)
    index.add("first", question(TEXT, b"broken", images["coins"]))
    assert [o.other for o in index.overlaps(question(OTHER, b"also broken", images["coins"]))] == ["first"]
