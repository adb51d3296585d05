"""Hints for teachers: the prompt of an attempt has the reference answer, and the stored trajectory does not.

A teacher that knows the answer finds a way to it more often. The trajectory is kept only if nothing in it betrays that the
answer was given: the prompt that the set has is the one without the hint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from dv2_jax.data.question import Question

_HINT = """

(For you alone: the correct answer is {answer}. Find the way to it from the question, the images and the tools, as someone \
would who does not know it. Never mention that you were given it.)"""
_BETRAYAL = re.compile(
    r"\b(hint(s|ed)?|(was|were|am|been) (given|told) the (correct |right |reference )?answer"
    r"|(given|provided|known|reference|supplied) (correct )?answer|correct answer (is|was) (given|provided)"
    r"|for (me|you) alone|as (stated|told) (above|in the prompt))\b",
    re.IGNORECASE,
)


def with_hint(question: Question) -> Question:
    """Returns the question with its reference answer in the prompt; a row's own prompt gets it in its last message."""
    hint = _HINT.format(answer=question.answer)
    if question.messages is None:
        return replace(question, text=question.text + hint)
    *before, last = question.messages
    return replace(question, messages=(*before, {**last, "content": last["content"] + hint}))


def betrays_hint(texts: Iterable[str]) -> bool:
    """Returns whether one of a trajectory's turns mentions that the answer was given."""
    return any(_BETRAYAL.search(text) for text in texts)
