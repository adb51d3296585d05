"""Tests the rules that compare numbers and expressions."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.scorers import expression_equality
from dv2_jax.evaluation.scorers.arithmetic import compute
from dv2_jax.evaluation.scorers.expression_equality import expressions_equal, without_wrapping
from dv2_jax.evaluation.scorers.relaxed_accuracy import relaxed_equal
from dv2_jax.evaluation.scorers.typed_equality import choice_equal, read_typed, typed_equal
from dv2_jax.rewards.verdict_pool import VerdictPool


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("100", "105", True), ("100", "105.1", False), ("100", "95", True), ("0.12", "12%", True), ("12%", "0.12", True),
        ("12%", "12", False), ("0", "0", True), ("0", "0.0", False), ("0%", "0", False), ("Yes", "yes", True), ("-5", "5", False),
        ("1,000", "1000", False), ("nan", "nan", False), ("inf", "inf", False), ("2014", "2013", True), ("", "", True),
    ],
)  # fmt: skip
def test_relaxed_equal(reference, prediction, expected):
    """Catches a tolerance relative to the prediction, and percent or a reference of zero handled in another way."""
    assert relaxed_equal(reference, prediction) is expected


@given(st.floats(0.01, 1e6), st.floats(0.9, 1.1))
def test_the_tolerance_is_relative_to_the_reference(target, factor):
    """Catches swapped arguments: at a factor of 1.051 only they agree."""
    value = target * factor
    relative = abs(value - target) / target
    if abs(relative - 0.05) > 1e-9:
        assert relaxed_equal(repr(target), repr(value)) is (relative < 0.05)
    assert not relaxed_equal("100", "105.2") and abs(105.2 - 100) / 105.2 <= 0.05


@pytest.mark.parametrize(
    ("text", "reference", "kind", "expected"),
    [
        ("14", "14", "integer", True), (" 14 ", "14", "integer", True), ("14.0", "14", "integer", False),
        ("1.45", "1.45", "float", True), ("1.4512", "1.45", "float", False), ("2", "2.0", "float", True),
        ("[2007, 2008]", "[2007, 2008]", "list", False), ("x", "y", "integer", False), ("0", "0", "integer", True),
    ],
)  # fmt: skip
def test_typed_equal(text, reference, kind, expected):
    """Catches rounding to the precision of the question, and lists that count as right: the kit does neither."""
    assert typed_equal(text, reference, kind) is expected


def test_choices_are_compared_by_letter_or_text():
    choices = {"A": "3/11", "B": "8/11"}
    assert choice_equal("The correct answer is (B)", "B", choices) is True
    assert choice_equal("3/11", "B", choices) is False
    assert choice_equal("neither", "B", choices) is None
    assert read_typed("9" * 5000, "integer") is None  # Python refuses to convert it


@given(st.recursive(st.integers(-50, 50).map(str), lambda inner: st.tuples(inner, st.sampled_from("+-*/%^|&"), inner).map(
    lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"), max_leaves=8))  # fmt: skip
def test_compute_equals_python(expression):
    """Catches a precedence or an operator that differs from Python's, whose `eval` the kit calls."""
    try:
        expected = eval(expression)  # of our own digits and operators
    except (ArithmeticError, TypeError):
        expected = None
    assert compute(expression) == expected


@pytest.mark.parametrize(
    "text", ["__import__('os')", "abs(-3)", "x", "[1]", "'a'", "1 if 1 else 2", "(", "", "1,2", "True"]
)
def test_compute_refuses_everything_but_arithmetic(text):
    """Catches names, calls and containers from a reply that reach Python."""
    assert compute(text) is None


@pytest.mark.parametrize("text", ["9**9**9**9", "2**100000000", "1" * 5000, "(" * 200 + ")" * 200, "10**4000*10**4000"])
def test_compute_is_bounded(text):
    """Catches a power that takes all memory or never ends."""
    start = time.monotonic()
    assert compute(text) is None and time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\frac{1}{2}", "0.5", True), ("0.5", r"\frac{2}{4}", True), ("0.50000001", "0.5", True), ("0.50001", "0.5", False),
        (r"\sqrt{8}", r"2\sqrt{2}", False), (r"\sqrt{8}", r"\sqrt{8}", True), ("1,000", "1000", True), ("2^3", "1", True),
        ("A", "a", True), ("x+1", "1+x", False), ("24 cm", "24", False), (r"3\times 4", "12", True), ("7", "8", False),
    ],
)  # fmt: skip
def test_expressions_equal(answer, reference, expected):
    """Catches a stronger comparison than the kit's, which knows neither roots nor units and takes ^ for Python's."""
    assert expressions_equal(answer, reference) is expected


def test_a_comparison_that_takes_too_long_is_no_verdict(monkeypatch):
    """Catches a hang, and a wrong answer where the time limit decided."""
    pool = VerdictPool(size=1, deadline_s=0.0)
    monkeypatch.setattr(expression_equality, "shared_pool", lambda: pool)
    try:
        assert expressions_equal(r"\frac{1}{2}", "0.5") is None
    finally:
        pool.close()


def test_wrapping_is_removed_as_released():
    r"""Catches `\boxed` removed from the answer: the released code removes it from the reference alone."""
    assert without_wrapping(r"\(5\)", r"\boxed{5}") == ("5", "5")
    assert without_wrapping(r"\boxed{5}", "5") == (r"\boxed{5}", "5")
    assert without_wrapping(r"\(5", "5") == (r"\(5", "5")
    assert math.isclose(compute("1/3"), 1 / 3)
