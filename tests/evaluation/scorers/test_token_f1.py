"""Token F1 and exact match, compared with precision and recall counted token by token."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.scorers.token_f1 import exact_match, normalize_answer, token_f1

WORDS = st.lists(st.sampled_from(["the", "A", "cat", "Cat,", "sat", "on", "mat.", "U.S.", "12", "—", "é"]), max_size=6)


def tokens(text: str) -> list[str]:
    kept = [re.sub(r"[^\w—]", "", word.lower()) for word in text.split()]
    return [word for word in kept if word and word not in ("a", "an", "the")]


@given(WORDS, WORDS)
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(prediction, reference):
    """Catches another normalization, tokens counted as a set, and the case in which one side is empty."""
    found, wanted = tokens(" ".join(prediction)), tokens(" ".join(reference))
    left, same = list(wanted), 0
    for token in found:
        if token in left:
            left.remove(token)
            same += 1
    expected = float(found == wanted) if not (found and wanted) else 0.0
    if same:
        precision, recall = same / len(found), same / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(" ".join(prediction), [" ".join(reference)]) == pytest.approx(expected)
    assert exact_match(" ".join(prediction), [" ".join(reference)]) == (found == wanted and bool(found))


def test_token_f1_takes_the_best_reference():
    assert token_f1("the red cat", ["a dog", "red cat"]) == 1.0
    assert token_f1("red", ["red cat", "x"]) == pytest.approx(2 / 3)
    assert token_f1("red", []) == 0.0
    assert normalize_answer("The  U.S., an Atlas") == "us atlas"
