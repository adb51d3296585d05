"""Tests the rules that read an option from a reply, with the traps that published scores depend on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.evaluation.scorers.choice_inference import MS_VLMEVAL, UPSTREAM, infer_choice, read_option, stated_option
from dv2_jax.evaluation.scorers.literal_lists import lettered, read_list
from dv2_jax.evaluation.scorers.option_letter import read_letter, read_letter_deepeyesv2, read_tagged_letter

COLORS = {"A": "red", "B": "blue", "C": "green", "D": "black"}
LETTERS = st.sampled_from("ABCD")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", "B"), ("(B)", "B"), ("**B**", "B"), ("The answer is B.", "B"), ("blue", "B"), ("It is Blue!", "B"),
        ("<answer>B</answer>", None),  # < and > separate no tokens
        ("<answer>\nB\n</answer>", "B"), ("A or B", None), ("red and blue", None), ("purple", None), ("Z", "Z"),
        ("Cannot determine the answer", "Z"), ("Failed to obtain answer via API.", None),
        ("B is what I would say if I had to guess", None),  # not among the last four tokens
        ("after a long time of thinking about this blue thing I am quite sure that it is the one", None),  # too long
        ("", None), ("b", None),
    ],
)  # fmt: skip
def test_infer_choice(reply, expected):
    """Catches a rule that is kinder than the pinned one: it would add points to every multiple-choice benchmark."""
    assert infer_choice(reply, COLORS) == expected


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("Looking closely, the answer is blue, as far as can be told from here", "B"),
        ("I believe that the answer is clearly visible in the upper part of it", "C"),
        ("I believe the answer is a red car, or so it seems from this angle", "A"),
        ("I believe the answer is E, or so it seems to me from this angle", None),
    ],
)
def test_the_rule_of_june_2026_reads_a_letter_inside_a_word(reply, named):
    """Catches a score that is labeled with one version of VLMEvalKit and computed with another."""
    choices = COLORS | {"E": "white"}
    assert infer_choice(reply, choices, UPSTREAM) == named
    assert infer_choice(reply, choices, MS_VLMEVAL) != named or named is None


@given(LETTERS, st.sampled_from(["{}", "({})", "{}.", "Answer: {}", "**{}**", "[{}]", "The correct option is {}"]))
def test_a_lone_letter_is_read_in_every_version(letter, sentence):
    reply = sentence.format(letter)
    assert infer_choice(reply, COLORS, MS_VLMEVAL) == infer_choice(reply, COLORS, UPSTREAM) == letter


@given(st.text(max_size=200), st.dictionaries(LETTERS, st.text(min_size=1, max_size=8), min_size=1))
def test_infer_choice_names_an_option_or_nothing(reply, choices):
    """Catches an exception on any reply, and a letter that no option has."""
    assert infer_choice(reply, choices) in {*choices, "Z", None}


SHADES = {"A": "red", "B": "dark red", "C": "a red cube to the left of the gray ball", "D": "5"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("b", "B"), ("(b)", "B"), ("b.", "B"), ("dark red", "B"), ("Dark red.", "B"), ("**dark red**", "B"),
        ("B. dark red", "B"), ("(B) dark red", "B"), ("b: dark red", "B"), ("B dark red", "B"), ("D. 5", "D"),
        ("C. a red cube to the left of the gray ball", "C"), ("A red cube to the left of the gray ball.", "C"),
        ("A. dark red", "A"),  # by the rule of the kit, which reads the letter first
        ("e", None), ("b or c", None), ("rather dark red", None), ("b. red", "A"),  # contains red: the kit's rule
        ("", "Z"), (" \n", "Z"), ("x", None),
    ],
)  # fmt: skip
def test_a_reply_that_is_nothing_but_an_option_needs_no_judge(reply, expected):
    """Catches sensible replies that fail for want of a judge, and replies with something to interpret that do not."""
    assert read_option(reply, SHADES) == expected


@given(st.text(max_size=40), st.dictionaries(LETTERS, st.text(min_size=1, max_size=8), min_size=1))
def test_stated_options_only_decide_what_the_pinned_rule_leaves_open(reply, choices):
    """Catches a verdict of the kit that is replaced, and a letter that no option has."""
    named = infer_choice(reply, choices)
    assert stated_option(reply, choices) in {*choices, None}
    assert named is None or read_option(reply, choices) == named


@given(st.dictionaries(LETTERS, st.text("ab \t", min_size=1, max_size=4).filter(str.strip), min_size=2), st.data())
def test_an_option_in_any_usual_form_is_itself_or_undecided(choices, data):
    """Catches a letter or text that is read as another option."""
    letter = data.draw(st.sampled_from(sorted(choices)))
    form = data.draw(st.sampled_from(["{0}. {1}", "({0}) {1}", "{0}: {1}", "{0}) {1}"]))
    same = [other for other, text in choices.items() if text.split() == choices[letter].split()]
    assert stated_option(form.format(letter, choices[letter]), choices) in (
        [letter] if len(same) == 1 else [letter, None]
    )


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", "B"), ("The best answer is B", "B"), ("Best answer: C", "B"), ("", "A"), ("The answer is", "A"), ("d", "D"),
        ("(c", "C"), ("x", ""), ("Apples, so C", "A"), ("there is no capital letter in this reply at all, so it names none", ""),
    ],
)  # fmt: skip
def test_read_letter(reply, expected):
    """Catches a repaired rule: published scores count an empty reply as A."""
    assert read_letter(reply) == expected


def test_tags_and_boxes_of_letters():
    r"""Catches a `<answer>` that is not read in upper case, and the released `\boxed{(A)}` that is never right."""
    assert read_tagged_letter("<think>C?</think><answer>b</answer>") == "B"
    assert read_letter_deepeyesv2(r"\boxed{(A)}") == "(A)"
    assert read_letter_deepeyesv2(r"\boxed{C}") == "C"


def test_lists_are_read_and_never_executed(tmp_path):
    """Catches `eval` on a cell of a file."""
    assert read_list("['(A) red', 12]") == ["(A) red", "12"] and lettered(["x", "y"]) == {"A": "x", "B": "y"}
    target = tmp_path / "x"
    assert read_list(f"[open({str(target)!r}, 'w')]") is None and not target.exists()
    assert read_list("12") is None and read_list("[") is None and read_list("nan") is None
