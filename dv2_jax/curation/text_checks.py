"""Checks the text of a trajectory without executing it: tags, one final answer, no loops.

It is the verifier of long chains of thought, whose rows have no call to execute, and an additional check of the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from dv2_jax.agent.tools.base import Tool

LOOP_WORDS = 20  # length of the word sequences that are counted
MAX_REPEATS = 4  # occurrences of one sequence from which on a text is a loop
MIN_LONG_COT_WORDS = 20  # thoughts that are shorter explain nothing
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def text_fault(texts: Sequence[str], tools: Sequence[Tool]) -> str:
    """Returns the first fault of a trajectory's turns; empty if there is none.

    Args:
        texts: the assistant's turns, the first `<think>` of each present or not.
        tools: those of the run; their tags must balance.
    """
    if not texts:
        return "there is no turn"
    for number, text in enumerate(texts, start=1):
        if fault := turn_fault(text, tools, is_last=number == len(texts)):
            return f"turn {number}: {fault}"
    return ""


def turn_fault(text: str, tools: Sequence[Tool], *, is_last: bool) -> str:
    """Returns the fault of one turn; empty if there is none."""
    text = text if text.lstrip().startswith("<think>") else "<think>" + text
    for tag in ("think", "answer", *(tool.tag for tool in tools)):
        if text.count(f"<{tag}>") != text.count(f"</{tag}>"):
            return f"<{tag}> is opened {text.count(f'<{tag}>')} times and closed {text.count(f'</{tag}>')} times"
    tail = text.rsplit("</think>", 1)[-1]
    answers = [answer.strip() for answer in _ANSWER.findall(tail)]
    if is_last and (len(answers) != 1 or not answers[0]):
        return f"{len([answer for answer in answers if answer])} answers after the thoughts, not one"
    if not is_last and answers:
        return "an answer before the last turn"
    if sequence := repeated_sequence(text):
        return f"repeats {MAX_REPEATS} times or more: {sequence!r}"
    return ""


def long_cot_fault(text: str, tools: Sequence[Tool]) -> str:
    """Returns the fault of a long chain of thought: one turn without calls, whose thoughts are no stub."""
    if fault := text_fault([text], tools):
        return fault
    for tool in tools:
        if tool.opening_tag in text:
            return f"calls a tool: {tool.opening_tag}"
    thoughts = text.rsplit("</think>", 1)[0].replace("<think>", "")
    if (count := len(thoughts.split())) < MIN_LONG_COT_WORDS:
        return f"{count} words of thought, fewer than {MIN_LONG_COT_WORDS}"
    return ""


def repeated_sequence(text: str) -> str:
    """Returns the start of a sequence of `LOOP_WORDS` words that occurs `MAX_REPEATS` times; empty if none does."""
    words = text.split()
    counts = Counter(tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1))
    found = next((sequence for sequence, count in counts.most_common(1) if count >= MAX_REPEATS), ())
    return " ".join(found[:8])
