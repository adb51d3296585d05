"""Tests the rules for replies in a format: JSON, letters, grades, boxes, and the classes of WeMath."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.scorers.box_overlap import intersection_over_union, mean_overlap, named_boxes
from dv2_jax.evaluation.scorers.graded_json import read_grade, read_grade_deepeyesv2
from dv2_jax.evaluation.scorers.letter_sets import bare_letters, read_letters, same_letters
from dv2_jax.evaluation.scorers.outcome_classes import OutcomeClass, classify, credit
from dv2_jax.evaluation.scorers.short_answer import (
    FLOAT,
    MULTIPLE_CHOICE,
    json_part,
    read_short_answer,
    short_answer_equal,
)
from dv2_jax.evaluation.scorers.substring_match import FORMULAS, contains_reference
from dv2_jax.evaluation.scorers.three_way_verdict import f1, read_three_way


def short(reply: str, kind: str):
    return read_short_answer(json_part(reply), kind)


@pytest.mark.parametrize(
    ("reply", "kind", "expected"),
    [
        ('{"solution": "x", "short answer": "3.5"}', FLOAT, 3.5), ('Sure: {"short answer": "2.5 cm"} ok', FLOAT, 2.5),
        ('{"short answer": 3.5}', FLOAT, None),  # a JSON number is not read
        ('{"short answer": "2\u03c0"}', FLOAT, 2 * math.pi), ("7.0", FLOAT, 7.0), ("seven", FLOAT, None),
        ('{"short answer": "b"}', MULTIPLE_CHOICE, "B"), ('{"short answer": "B. 5"}', MULTIPLE_CHOICE, "B"),
        ('{"solution": "A or B"}', MULTIPLE_CHOICE, None), ('{"short answer": "Even"}', "text", "Even"), ("no", "text", "no"),
        ('{"solution": "say \\"x\\"", "short answer": "3"}', FLOAT, None),  # the removed backslash ends the text
    ],
)  # fmt: skip
def test_read_short_answer(reply, kind, expected):
    """Catches a JSON reader that is better than the kit's, which removes backslashes first."""
    assert short(reply, kind) == expected


def test_short_answers_are_compared_by_type():
    """Catches a containment in the other direction: an empty text is right, a longer one wrong."""
    assert short_answer_equal(3.5009, "3.5", FLOAT, "") and not short_answer_equal(3.502, "3.5", FLOAT, "")
    assert not short_answer_equal(math.nan, "3.5", FLOAT, "")
    assert short_answer_equal("B", "B", MULTIPLE_CHOICE, "") and not short_answer_equal("A", "B", MULTIPLE_CHOICE, "")
    assert short_answer_equal(None, "B", MULTIPLE_CHOICE, "b, a") and not short_answer_equal(
        None, "B", MULTIPLE_CHOICE, "x"
    )
    assert short_answer_equal("even", "Even function", "text", "") and short_answer_equal("", "x", "text", "")
    assert not short_answer_equal("an even function", "Even function", "text", "")


@given(st.text(max_size=80), st.sampled_from([FLOAT, MULTIPLE_CHOICE, "text"]))
def test_read_short_answer_takes_any_reply(reply, kind):
    """Catches an exception on a reply that is almost JSON."""
    answer = short(reply, kind)
    assert answer is None or isinstance(answer, float if kind == FLOAT else str)


@given(st.permutations("ABCDE"), st.integers(1, 5))
def test_letters_are_compared_as_sets(letters, count):
    chosen = letters[:count]
    assert same_letters("".join(chosen), ", ".join(sorted(chosen)))
    assert not same_letters("".join(chosen), ", ".join(sorted(letters[: count - 1] or "F")))


def test_letters_of_replies_and_judges():
    """Catches a sentence that is taken for letters, and a judge's reply with separators."""
    assert [bare_letters(text) for text in ("B", "(B)", " A, C ", "B.")] == ["B", "B", "AC", "B"]
    assert [bare_letters(text) for text in ("AC", "I", "A or C", "<answer>A</answer>", "")] == [
        None,
        "I",
        None,
        None,
        None,
    ]
    assert read_letters("AC\n") == "AC" and read_letters("A, C") is None and read_letters("ac") is None


@pytest.mark.parametrize(
    ("reply", "official", "released"),
    [
        ('{"extract_answer": "x", "score": 1}', (1.0, "x"), (1.0, "x")),
        ('{"extracted_answer": "x", "score": 1}', (1.0, "x"), (0.0, "")),
        ('```json\n{"extract_answer": "x", "score": 1}\n```', (1.0, "x"), (0.0, "")),
        ('{"extract_answer": "x"}', None, (0.0, "")),
        ('{"extract_answer": "x", "score": 7}', None, (0.0, "")),
        ("[1]", None, (0.0, "")),
        ("I would say 1", None, (0.0, "")),
    ],
)
def test_grades(reply, official, released):
    """Catches a reply without a grade that counts as 0, which only the released evaluation does."""
    assert read_grade(reply) == official and read_grade_deepeyesv2(reply) == released


@given(st.lists(st.sampled_from(["correct", "incorrect", "not attempted"]), min_size=1))
def test_f1_is_the_harmonic_mean(verdicts):
    right, attempted = verdicts.count("correct"), len(verdicts) - verdicts.count("not attempted")
    parts = [right / len(verdicts), right / attempted if attempted else 0.0]
    expected = 2 * math.prod(parts) / sum(parts) if right else 0.0
    assert f1(verdicts) == pytest.approx(expected)


def test_three_way_verdicts():
    assert read_three_way('{"verdict": "not attempted"}') == "not attempted" and read_three_way("Correct.") == "correct"
    assert read_three_way(json.dumps({"\u9884\u6d4b\u7b54\u68480": "\u9519\u8bef"})) == "incorrect"
    assert read_three_way("I cannot say") is None and read_three_way("{") is None


def test_substrings():
    """Catches letter case or blanks that count: formulas are compared without blanks, but with their letter case."""
    assert contains_reference("The sign says Stop!", ["STOP"], "Scene Text-centric VQA")
    assert contains_reference("so x^2 + 1", ["x ^ 2 + 1"], FORMULAS) and not contains_reference(
        "X^2+1", ["x^2+1"], FORMULAS
    )
    assert contains_reference("anything", [""], "Doc-oriented VQA") and not contains_reference(
        "1 2", ["12"], "Doc-oriented VQA"
    )


def test_boxes():
    """Catches boxes with blanks or without an area, and a second thought, which the published rule does not read."""
    assert named_boxes("<box>[0,0,10,5]</box><box>[1, 2,3,4]</box><box>[5,5,1,1]</box>") == [(0, 0, 10, 5)]
    assert mean_overlap("<box>[0,0,10,5]</box>", [[0, 0, 10, 10]]) == 0.5
    assert mean_overlap("<think>no</think><think><box>[0,0,10,10]</box></think>", [[0, 0, 10, 10]]) == 0
    assert mean_overlap("", []) == 0 and mean_overlap("<box>[0,0,10,5]</box>", []) == 1


@given(st.tuples(*[st.integers(0, 50)] * 4), st.tuples(*[st.integers(0, 50)] * 4))
def test_overlap_is_symmetric_and_at_most_one(first, second):
    assert intersection_over_union(first, first) in (0.0, 1.0)
    if first[0] <= first[2] and first[1] <= first[3] and second[0] <= second[2] and second[1] <= second[3]:
        value = intersection_over_union(first, second)
        assert 0 <= value <= 1 and value == intersection_over_union(second, first)


@pytest.mark.parametrize("count", [2, 3])
def test_classes_of_wemath(count):
    """Catches strict and loose interchanged: they differ where some steps are right and the problem is."""
    for *steps, problem in itertools.product([True, False], repeat=count + 1):
        strict, loose = classify(steps, problem, False), classify(steps, problem, True)
        assert credit(strict) <= credit(loose)
        assert (strict is not loose) == (problem and any(steps) and not all(steps))
        assert (strict is OutcomeClass.INADEQUATE) == (all(steps) and not problem)
    assert [credit(outcome) for outcome in OutcomeClass] == [1.0, 0.5, 0.0, 0.0]
