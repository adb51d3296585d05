"""Tests the rules that classify wrong answers, one record per rule."""

import pytest
from PIL import Image

from dv2_jax.evaluation.analysis.error_classes import CLASSES, error_class
from tests.evaluation.analysis.hand_made import answered, compute, crop, image_search, record, said, search, turn

CASES = {
    "limit, tokens": ("limit", record("q", crop(), finish="max_tokens")),
    "limit, turns": ("limit", record("q", crop(), finish="max_turns")),
    "format, no action": ("format", record("q", crop(), turn("none"), finish="max_turns")),
    "format, broken call": ("format", record("q", turn("malformed"), finish="max_turns")),
    "no call": ("no_call", record("q", said())),
    "reference in stdout": ("result_ignored", record("q", compute("The city is Paris."), said())),
    "short reference in short stdout": ("result_ignored", record("q", compute("42"), said(), reference="42")),
    "short reference in long stdout": ("misread", record("q", compute("42 " + "x" * 300), said(), reference="42")),
    "a digit of a longer number": ("misread", record("q", compute("142.5"), said(), reference="42")),
    "letter of an option": ("misread", record("q", compute("A"), said(), reference="A")),
    "one of several references": (
        "result_ignored",
        record("q", search("Lutetia"), said(), reference="Paris or Lutetia"),
    ),
    "code raised": ("raised", record("q", compute(status="error"), said())),
    "code raised, then worked": ("misread", record("q", compute(status="error"), compute("7"), said())),
    "worked, then raised": ("raised", record("q", compute("7"), compute(status="timeout"), said())),
    "the search failed": ("raised", record("q", compute("7"), search(status="error"), said())),
    "blank crop": ("blank_crop", record("q", crop(images=("blank.png",)), said())),
    "blank crop, then another": ("misread", record("q", crop(images=("blank.png",)), crop(), said())),
    "image was not stored": ("misread", record("q", crop(images=("missing.png",)), said())),
    "text instead of image": ("text_for_image", record("q", search("London"), said())),
    "text, without an image": ("not_found", record("q", search("London"), said(), images=())),
    "both searches": ("not_found", record("q", image_search("x"), search("London"), said())),
    "code and search": ("human", record("q", crop(), search("London"), said())),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (9, 9), (0, 0, 0)).save(folder / "blank.png")
    Image.linear_gradient("L").save(folder / "shown.png")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_answer_has_the_class_of_the_first_rule_that_applies(name, images):
    expected, made = CASES[name]
    assert error_class(made, images) == expected


def test_every_class_has_a_case():
    assert {expected for expected, _ in CASES.values()} == set(CLASSES)


def test_a_policy_without_image_search_did_not_choose_text_instead(images):
    """Catches a class that blames a policy for a tool that its protocol does not have."""
    made = record("q", search("London"), said(), answer=answered("q", tools=["code", "search"]))
    assert error_class(made, images) == "not_found"


def test_every_reference_of_a_benchmark_counts(images):
    """Catches a search class for a result with the second of several accepted answers."""
    made = record("q", search("Lutetia Parisiorum"), said(), images=())
    assert error_class(made, images) == "not_found"
    made["question"]["references"] = ["Paris", "Lutetia"]
    assert error_class(made, images) == "result_ignored"


def test_the_query_is_no_result(images):
    """Catches a search for "Paris" that counts as a result with "Paris", because its heading repeats the query."""
    assert error_class(record("q", search("London"), said(), images=()), images) == "not_found"
