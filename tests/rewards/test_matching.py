"""When two answers are the same: spelling yes, guessing no."""

import threading

import pytest

from dv2_jax.rewards.matching import equivalent
from dv2_jax.rewards.numbers import read_number

SAME = [
    ("The Café-Noir.", "cafe noir", "text", {}),
    ("SÃO PAULO", "Sao Paulo", "text", {}),
    ("Straße", "strasse", "text", {}),
    ("ﬁve ｆｏｘｅｓ", "five foxes", "text", {}),
    ("The answer is: Paris", "Paris", "text", {}),
    ("a", "A", "text", {}),
    ("USA", "United States", "text", {"aliases": ["USA", "US"]}),
    ("6.0", "6", "text", {}),
    ("six", "6", "text", {}),
    ("7 %", "7%", "text", {}),
    ("1,234", "1234", "number", {}),
    ("1 234 567", "1234567", "number", {}),
    ("1\u202f234.5", "1234.5", "number", {}),
    ("3,14", "3.14", "number", {}),
    ("−5", "-5", "number", {}),
    ("$1,200.50", "1200.5", "number", {}),
    ("3/4", "0.75", "number", {}),
    ("1.2×10^3", "1200", "number", {}),
    ("1.2e3", "1200", "number", {}),
    ("2.5 million", "2500000", "number", {}),
    ("x = 42", "42", "number", {}),
    ("about 42 apples", "42", "number", {}),
    ("12.5 km", "12500 m", "number", {}),
    ("90 minutes", "1.5", "number", {"unit": "hours"}),
    ("25 km/h", "25 km/h", "number", {}),
    ("10.05", "10", "number", {"tolerance": 0.05}),
    ("101", "100", "number", {"relative_tolerance": 0.01}),
    (".5", "0.5", "number", {}),
    ("(B)", "B", "choice", {}),
    ("b. cat", "B", "choice", {}),
    ("Option C", "C", "choice", {}),
    ("cat", "B", "choice", {"choices": ["dog", "cat"]}),
    ("B", "cat", "choice", {"choices": {"A": "dog", "B": "cat"}}),
    (r"\frac{1}{2}", "0.5", "math", {}),
    ("$x=3$", "3", "math", {}),
    (r"2\sqrt{3}", r"\sqrt{12}", "math", {}),
    ("x^2+2x+1", "(x+1)^2", "math", {}),
    (r"\boxed{\text{even}}", "even", "math", {}),
]
DIFFERENT = [
    ("Paris or London", "Paris", "text", {}),
    ("Not Paris", "Paris", "text", {}),
    ("C#", "C", "text", {}),
    ("Apollo 13", "Apollo 11", "text", {}),
    ("11 dogs", "Apollo 11", "text", {}),
    ("Route 5", "5", "text", {}),
    ("3.5", "35", "text", {}),
    ("10 dogs", "10 cats", "text", {}),
    ("", "x", "text", {}),
    (None, "x", "text", {}),
    ("3 or 4", "3", "number", {}),
    ("10-15", "10", "number", {}),
    ("2024-05-01", "2024", "number", {}),
    ("-3", "3", "number", {}),
    ("100 kg", "100 m", "number", {}),
    ("12.5 m", "12.5 km", "number", {}),
    ("10.06", "10", "number", {"tolerance": 0.05}),
    ("1,23", "123", "number", {}),
    ("many", "3", "number", {}),
    ("5/0", "5", "number", {}),
    ("1e999", "1", "number", {}),
    ("A cat", "A", "choice", {"choices": ["dog", "a cat"]}),
    ("A or B", "A", "choice", {}),
    ("AB", "A", "choice", {}),
    ("D", "A", "choice", {}),
    ("(1,2)", "(2,1)", "math", {}),
    ("4", "5", "math", {}),
    ("x+1", "x-1", "math", {}),
]


@pytest.mark.parametrize(("prediction", "answer", "verifier", "meta"), SAME)
def test_another_spelling_of_the_answer_is_right(prediction, answer, verifier, meta):
    assert equivalent(prediction, answer, verifier, meta)


@pytest.mark.parametrize(("prediction", "answer", "verifier", "meta"), DIFFERENT)
def test_another_answer_or_a_hedge_is_wrong(prediction, answer, verifier, meta):
    assert not equivalent(prediction, answer, verifier, meta)


def test_floats_survive_a_round_trip_through_text():
    assert all(equivalent(repr(value), f"{value:.12g}", "number", {}) for value in (0.1 + 0.2, 1e-7, 1 / 3, 2.0**70))


def test_mathematics_can_be_checked_off_the_main_thread():
    """math-verify keeps time by signals, which raise in other threads; rewards run in a pool."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(equivalent(r"\sqrt{8}", r"2\sqrt{2}", "math", {})))
    thread.start()
    thread.join()
    assert seen == [True]


def test_babble_is_cheap_and_wrong():
    assert read_number("9" * 100_000) is None and read_number("1 " * 400) is None
    assert not equivalent("((((" * 5000, "1", "math", {})


def test_a_number_question_without_a_number_and_an_unknown_verifier_are_errors():
    with pytest.raises(ValueError, match="Paris"):
        equivalent("1", "Paris", "number", {})
    with pytest.raises(ValueError, match="exact"):
        equivalent("1", "1", "exact", {})
