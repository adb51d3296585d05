"""Tests of answer matching: a table of answers in the formats of benchmarks and data sets, and properties that must hold."""

import json
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dv2_jax.rewards.matching import answers_match, answers_match_batch

ROWS = [json.loads(line) for line in Path(__file__).with_name("answer_pairs.jsonl").read_text().splitlines()]
TEXT, NUMBER, CHOICE, MATH = "text", "number", "choice", "math"
some = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def by_verifier(name):
    rows = [row for row in ROWS if row["verifier"] == name]
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{row['prediction'][:20]} = {row['reference'][:20]}")


def check(row):
    verdict = answers_match(row["prediction"], row["reference"], row["verifier"], row["meta"])
    assert verdict == row["verdict"], row


def test_the_table_covers_every_verifier_with_both_verdicts():
    counts = {}
    for row in ROWS:
        counts.setdefault(row["verifier"], []).append(row["verdict"])
    assert set(counts) == {TEXT, NUMBER, CHOICE, MATH} and len(ROWS) >= 450
    assert all(min(sum(verdicts), len(verdicts) - sum(verdicts)) >= 30 for verdicts in counts.values())


@by_verifier(TEXT)
def test_text_answers(row):
    """Catches: normalization that erases a sign, bracket, operator, superscript, currency or unit; a guess accepted."""
    check(row)


@by_verifier(NUMBER)
def test_number_answers(row):
    """Catches: a number read out of an expression, hedge or other unit; a usual format of the right number refused."""
    check(row)


@by_verifier(CHOICE)
def test_choice_answers(row):
    """Catches: a label refused for its wrapping, a contradiction of label and wording accepted, several labels accepted."""
    check(row)


@by_verifier(MATH)
def test_math_answers(row):
    """Catches: text rules applied to mathematics, and math-verify asked about a structure that it ignores."""
    check(row)


def test_a_batch_gives_the_verdicts_of_single_calls():
    """Catches: verdicts assigned to the wrong rows of a batch."""
    rows = [(row["prediction"], row["reference"], row["verifier"], row["meta"]) for row in ROWS]
    assert answers_match_batch(rows) == [row["verdict"] for row in ROWS]


def test_a_batch_of_ordinary_verdicts_is_quick():
    """Catches: verdicts computed one after the other, or a worker started for each. Bounded by processor time, because
    other processes may share the machine."""
    rows = [
        (rf"\frac{{{n}}}{{3}}\sqrt{{{n}}}", rf"{n}\sqrt{{{n}}}/3", MATH, None) if n % 4 == 0 else
        (f"{n}.0", str(n), MATH, None) if n % 4 == 1 else
        (f"({n}, {n + 1})", f"({n},{n + 1})", MATH, None) if n % 4 == 2 else
        ("the red car", "Red car", TEXT, None)
        for n in range(2, 130)
    ]  # fmt: skip
    answers_match_batch([("x+2", "2+x", MATH, None), ("y+2", "2+y", MATH, None)])
    wall, cpu = time.monotonic(), time.process_time()
    assert all(answers_match_batch(rows))
    assert time.process_time() - cpu < 1.0
    assert time.monotonic() - wall < 15.0


def test_an_unknown_verifier_and_an_unusable_reference_are_errors():
    with pytest.raises(ValueError, match="exact"):
        answers_match("1", "1", "exact")
    with pytest.raises(ValueError, match="Paris"):
        answers_match("1", "Paris", NUMBER)
    with pytest.raises(ValueError, match="choices"):
        answers_match("A", "A", CHOICE, {"choices": "red"})


def test_metadata_from_parquet_and_a_single_alias_are_understood():
    """Catches: one alias read letter by letter, and the ambiguous truth value of an array."""
    assert answers_match("USA", "United States", TEXT, {"aliases": "USA"})
    assert not answers_match("U", "United States", TEXT, {"aliases": "USA"})
    assert answers_match("USA", "United States", TEXT, {"aliases": np.array(["US", "USA"], object)})
    assert answers_match("blue", "B", CHOICE, {"choices": np.array(["red", "blue"], object)})
    assert answers_match("B", "B", CHOICE, {"choices": []}) and answers_match("B", "B", CHOICE, {"choices": None})


def test_a_missing_answer_is_wrong_and_degenerate_output_is_cheap():
    """Catches: rules whose cost grows faster than the answer."""
    started = time.process_time()
    for verifier, reference in ((TEXT, "x"), (NUMBER, "1"), (CHOICE, "A"), (MATH, "1")):
        assert not answers_match(None, reference, verifier)
        for text in (
            "9" * 100_000,
            "1 " * 1990,
            "(" * 3999,
            "\\frac{" * 600,
            "a," * 1900,
            "-" * 3999,
            "$" * 3000,
            "A or " * 700,
        ):
            assert not answers_match(text, reference, verifier), (verifier, text[:10])
    assert time.process_time() - started < 10


def test_lone_surrogates_are_wrong_and_no_error():
    """Catches: text that a policy wrote reaching an encoder unchecked."""
    for verifier, reference in ((TEXT, "x"), (NUMBER, "1"), (CHOICE, "A"), (MATH, "x+1")):
        assert not answers_match("1+x \ud83d", reference, verifier)


# Properties.

fragments = st.lists(
    st.sampled_from(
        [
            "a",
            "A ",
            "1",
            "1,",
            "(",
            "[",
            "{",
            "}",
            ")",
            "]",
            r"\frac{",
            r"\text{",
            " and ",
            ",",
            ".",
            "-",
            "'",
            "$",
            "^",
            "_",
            "=",
        ]
        + [
            r"\boxed{",
            r"\sqrt",
            "the ",
            "%",
            "°",
            "½",
            "³",
            "₂",
            r"\pm ",
            "one ",
            "**",
            "10^",
            "\ud83d",
            "٣",
            "!",
            r"\\",
            "&",
        ]
    ),
    max_size=40,
).map("".join)


@some
@given(fragments, st.one_of(fragments, st.sampled_from(["1", "x+1", "(0,1)", "red car"])))
def test_no_text_of_a_policy_is_an_error(prediction, reference):
    """Catches: an exception on malformed LaTeX or unusual characters, which would cost the trajectory."""
    for verifier in (TEXT, CHOICE, MATH):
        assert answers_match(prediction, reference, verifier) in (True, False)
    assert answers_match(prediction, "5", NUMBER) in (True, False)


numbers = st.one_of(
    st.integers(-10_000, 10_000).map(str),
    st.fractions(min_value=-99, max_value=99, max_denominator=40).map(lambda f: f"{f.numerator}/{f.denominator}"),
    st.decimals(min_value=-999, max_value=999, places=2, allow_nan=False).map(lambda d: f"{d:f}"),
)
expressions = st.one_of(
    numbers,
    st.tuples(st.integers(2, 50), st.integers(2, 50)).map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
    st.tuples(st.integers(2, 9), st.integers(2, 30)).map(lambda p: rf"{p[0]}\sqrt{{{p[1]}}}"),
    st.tuples(st.sampled_from("xyab"), st.integers(1, 9)).map(lambda p: f"{p[0]}+{p[1]}"),
    st.tuples(st.integers(2, 9), st.sampled_from("xyn")).map(lambda p: rf"{p[0]}{p[1]}^2"),
    st.integers(1, 12).map(lambda n: rf"\frac{{\pi}}{{{n}}}"),
)
words = st.lists(st.sampled_from("red blue car house old York river museum".split()), min_size=1, max_size=4).map(
    " ".join
)


def value_of(text):
    return Fraction(text)


@some
@given(expressions)
def test_an_answer_equals_itself(text):
    assert answers_match(text, text, MATH) and answers_match(text, text, TEXT)


@some
@given(numbers)
def test_a_number_never_equals_its_negation(text):
    """Catches: the reported fault that -2 was rewarded for 2."""
    assume(value_of(text) != 0)
    negated = text[1:] if text.startswith("-") else f"-{text}"
    for verifier in (TEXT, NUMBER, MATH):
        assert not answers_match(negated, text, verifier) and not answers_match(text, negated, verifier)
    assert not answers_match(negated, "B", CHOICE, {"choices": [negated, text]})


@some
@given(expressions)
def test_an_expression_never_equals_its_negation(text):
    assume(not text.startswith(("-", "0/")) and text.strip("0."))
    assert not answers_match(f"-({text})", text, MATH) and not answers_match(text, f"-({text})", MATH)


@some
@given(st.integers(-60, 60), st.integers(1, 60))
def test_a_fraction_equals_its_reciprocal_only_if_their_values_are_equal(top, bottom):
    assume(top)
    for form in (r"\frac{{{}}}{{{}}}", "{}/{}"):
        one, other = form.format(top, bottom), form.format(bottom, top)
        assert answers_match(one, other, MATH) == (abs(top) == bottom), one


@some
@given(st.sampled_from("abxyn"), st.sampled_from("cdpqr"))
def test_a_quotient_of_variables_never_equals_its_reciprocal(top, bottom):
    assert not answers_match(rf"\frac{{{top}}}{{{bottom}}}", rf"\frac{{{bottom}}}{{{top}}}", MATH)
    assert not answers_match(f"{top}/{bottom}", f"{bottom}/{top}", TEXT)


BRACKETS = ["({})", "[{}]", "({}]", "[{})", r"\{{{}\}}", "{}"]


@some
@given(numbers, numbers, st.permutations(BRACKETS))
def test_an_interval_or_point_never_equals_one_in_other_brackets(low, high, brackets):
    content = f"{low}, {high}"
    one, other = brackets[0].format(content), brackets[1].format(content)
    is_list_and_set = {brackets[0], brackets[1]} == {r"\{{{}\}}", "{}"}
    for verifier in (TEXT, MATH):
        if not is_list_and_set:
            assert not answers_match(one, other, verifier), (one, other)
    assert answers_match(one, one.replace(", ", ","), MATH)


@some
@given(expressions, expressions)
def test_math_is_symmetric(one, other):
    assert answers_match(one, other, MATH) == answers_match(other, one, MATH)


@some
@given(words, words)
def test_text_is_symmetric_and_other_words_are_wrong(one, other):
    assert answers_match(one, other, TEXT) == answers_match(other, one, TEXT) == (one == other)


WRAPPINGS = [
    "{}",
    " {} ",
    "{}\n",
    "**{}**",
    "The answer is {}",
    "The final answer is: {}.",
    r"\boxed{{{}}}",
    "Answer: {}",
    "${}$",
]


@some
@given(expressions, expressions, st.sampled_from(WRAPPINGS))
def test_wrapping_does_not_change_a_verdict(prediction, reference, wrapping):
    wrapped = wrapping.format(prediction)
    assert answers_match(wrapped, reference, MATH) == answers_match(prediction, reference, MATH), wrapped


@some
@given(numbers, numbers, st.sampled_from(WRAPPINGS))
def test_wrapping_does_not_change_a_number(prediction, reference, wrapping):
    wrapped = wrapping.format(prediction)
    assert answers_match(wrapped, reference, NUMBER) == (value_of(prediction) == value_of(reference)), wrapped


@some
@given(
    st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from([*WRAPPINGS, "({})", "{}.", "{})", "Option {}"])
)
def test_wrapping_does_not_change_a_choice(label, reference, wrapping):
    assert answers_match(wrapping.format(label), reference, CHOICE) == (label == reference)


@some
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_floats_survive_printing(value):
    assume(value == 0 or abs(value) > 1e-200)
    assert answers_match(repr(value), f"{value:.12g}", NUMBER)


def test_mathematics_can_be_checked_on_any_thread():
    """Catches: a library that keeps time by signals, which raise outside the main thread."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(answers_match(r"\sqrt{8}", r"2\sqrt{2}", MATH)))
    thread.start()
    thread.join()
    assert seen == [True]
