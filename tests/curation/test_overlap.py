"""Tests the decision on pairs of questions with images.

Catches: the same words about another image dropped as a duplicate, an image of a benchmark that leaks into a set with another
question, several questions about one image dropped within a set.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from dv2_jax.curation.overlap import BenchmarkOverlapIndex, RowOverlapIndex
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
    first = question(TEXT, images["coins"])
    indexes = BenchmarkOverlapIndex(), RowOverlapIndex(None, {"first": first.images}.__getitem__)
    for index, wanted in zip(indexes, (against_benchmarks, within_set), strict=True):
        index.add("first", first)
        found = {overlap.other: overlap.drop for overlap in index.overlaps(question(text, images[name]))}
        assert found == ({} if wanted is None else {"first": wanted})


def test_questions_without_images_match_by_their_words():
    index = RowOverlapIndex(None, dict().__getitem__)
    index.add("first", question(TEXT))
    (overlap,) = index.overlaps(question(TEXT.lower()))
    assert overlap.drop and overlap.reason == "equal question"


def test_a_broken_image_costs_nothing_but_its_comparison(images):
    index = BenchmarkOverlapIndex()
    index.add("first", question(TEXT, b"broken", images["coins"]))
    assert [o.other for o in index.overlaps(question(OTHER, b"also broken", images["coins"]))] == ["first"]


def crop(data: bytes, *box: int) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).crop(box).save(out, "PNG")
    return out.getvalue()


def test_within_a_set_a_crop_of_an_image_under_the_same_question_is_found(images):
    stored = {"first": question(TEXT, images["coins"]), "other": question(OTHER, images["coins"])}
    index = RowOverlapIndex(None, lambda id_: stored[id_].images)
    for id_, row in stored.items():
        index.add(id_, row)
    (overlap,) = index.overlaps(question(TEXT, crop(images["coins"], 20, 20, 340, 260)))
    assert (overlap.other, overlap.drop, overlap.reason) == ("first", True, "crop of the image and equal question")


def test_a_question_that_very_many_rows_ask_is_still_compared_by_image(monkeypatch):
    """Catches a limit on the rows with the same words that also hides equal and near images."""
    monkeypatch.setattr("dv2_jax.curation.overlap.MAX_ALIKE", 3)
    rng = np.random.default_rng(0)
    index = RowOverlapIndex(None, lambda id_: ())
    shown = [Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).resize((64, 64)) for _ in range(9)]
    encoded = {}
    for number, image_ in enumerate(shown):
        for kind in ("PNG", "WEBP"):
            out = io.BytesIO()
            image_.save(out, kind)
            encoded[number, kind] = out.getvalue()
        index.add(str(number), question(TEXT, encoded[number, "PNG"]))
    for number in range(9):
        for kind in ("PNG", "WEBP"):
            found = {overlap.other: overlap.drop for overlap in index.overlaps(question(TEXT, encoded[number, kind]))}
            assert found[str(number)]


def test_ids_are_returned_as_they_were_added():
    """Catches an index on disk that changes ids: empty ones, other scripts, lone surrogates."""
    index = RowOverlapIndex(None, dict().__getitem__)
    ids = ["", "ä/β", "x\ud800y", "0"]
    for id_ in ids:
        index.add(id_, question(TEXT))
    assert sorted(overlap.other for overlap in index.overlaps(question(TEXT))) == sorted(ids)
