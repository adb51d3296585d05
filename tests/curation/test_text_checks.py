"""Tests the checks of texts. Catches: a stub or a loop that is kept, tags of a tool in a chain of thought, a hint in a turn."""

from __future__ import annotations

import pytest

from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.curation.hints import betrays_hint, with_hint
from dv2_jax.curation.text_checks import long_cot_fault, text_fault
from dv2_jax.data.question import Question
from tests.curation.small_sets import ANSWER, CODE, LONG_THOUGHT

TOOLS = default_tools()
LOOP = (
    "<think>" + "We try again and find that the sum of the two numbers is not what it should be so once more now. " * 5
)


@pytest.mark.parametrize(
    "text, fault",
    [
        (LONG_THOUGHT, ""),
        (LONG_THOUGHT.replace("<think>", "", 1), ""),  # the environment writes the first tag
        ("<think>Easy.</think>\n<answer>42</answer>", "1 words of thought"),
        (LONG_THOUGHT.replace("</think>", ""), "<think> is opened 1 times and closed 0 times"),
        (LONG_THOUGHT.replace("<answer>42</answer>", "It is 42."), "0 answers"),
        (LONG_THOUGHT + "<answer>43</answer>", "2 answers"),
        (LONG_THOUGHT.replace("<answer>42<", "<answer> <"), "0 answers"),
        (LONG_THOUGHT.replace("Step 3", "<code>print(1)</code>"), "calls a tool: <code>"),
        (LOOP + "</think>\n<answer>42</answer>", "repeats 4 times or more: 'try again and"),
    ],
)
def test_a_long_chain_of_thought_is_one_complete_turn_without_calls(text, fault):
    found = long_cot_fault(text, TOOLS)
    assert fault in found and bool(found) == bool(fault)


@pytest.mark.parametrize(
    "texts, fault",
    [
        ([CODE, ANSWER], ""),
        ([ANSWER], ""),
        ([], "there is no turn"),
        ([CODE], "turn 1: 0 answers"),
        ([ANSWER, ANSWER], "turn 1: an answer before the last turn"),
        ([CODE.replace("</code>", ""), ANSWER], "turn 1: <code> is opened 1 times and closed 0 times"),
    ],
)
def test_the_turns_of_a_trajectory(texts, fault):
    found = text_fault(texts, TOOLS)
    assert fault in found and bool(found) == bool(fault)


def test_a_hint_is_in_the_prompt_alone():
    plain = Question("q", "s", "reason", "6 * 7?", (), "42")
    own = Question("q", "s", "reason", "6 * 7?", (), "42", messages=({"role": "user", "content": "Compute 6 * 7."},))
    assert "correct answer is 42" in with_hint(plain).text and plain.text == "6 * 7?"
    assert (
        with_hint(own).messages[-1]["content"].startswith("Compute 6 * 7.\n\n(For you alone: the correct answer is 42.")
    )
    assert own.messages[-1]["content"] == "Compute 6 * 7."


@pytest.mark.parametrize(
    "text, betrays",
    [
        ("The hint says 42.", True),
        ("I was given the answer, so I work back to it.", True),
        ("This agrees with the provided answer.", True),
        ("As told in the prompt, it is 42.", True),
        ("The reference answer must be 42.", True),
        ("The picture gives a hint of blue.", True),  # strict: the row is lost, not the rule
        ("The given numbers are 6 and 7.", False),
        ("So the correct answer is 42.", False),
        ("Whiting is a fish.", False),
    ],
)
def test_a_trajectory_that_mentions_its_hint_is_found(text, betrays):
    assert betrays_hint(["<think>x</think>", text]) is betrays
