"""The rule of DynaMath: a short answer in a JSON reply, compared by its type."""

from __future__ import annotations

import json
import math

FLOAT, MULTIPLE_CHOICE = "float", "multiple choice"
TOLERANCE = 0.001  # absolute
_LETTERS = "ABCDE"


def json_part(reply: str) -> str:
    r"""Returns what is between the first `{` and the last `}` of a reply, or all of it, without any backslash.

    Removing them turns the line break `\n` of a JSON text into the letter n, and escaped quotation marks into plain
    ones, which end the text.
    """
    start, end = reply.find("{"), reply.rfind("}")
    return (reply[start : end + 1] if 0 <= start < end else reply).replace("\\", "")


def read_short_answer(part: str, answer_type: str) -> str | float | None:
    """Returns the short answer in a `json_part`, or else the part itself read as one; None if it cannot be read."""
    try:
        found = json.loads(part, strict=False).get("short answer")
        answer = None if found is None else parse_short_answer(found, answer_type)
    except (ValueError, AttributeError, TypeError, RecursionError):
        answer = None
    return parse_short_answer(part, answer_type) if answer is None else answer


def parse_short_answer(text: str, answer_type: str) -> str | float | None:
    """Returns a number (`2.5 cm` is 2.5, and a factor of pi is one), a letter, or the text; None if it is none."""
    if answer_type == FLOAT:
        return _number(text)
    if answer_type != MULTIPLE_CHOICE:
        return text
    if len(text) == 1:
        return text.upper()
    named = [letter for letter in _LETTERS if letter in text.upper()]
    return named[0] if len(named) == 1 else None


def _number(text: str) -> float | None:
    word = text.split(" ")[0]
    try:
        return float(word.split("\u03c0")[0]) * math.pi if "\u03c0" in word else float(word)
    except ValueError:
        return None


def short_answer_equal(answer: str | float | None, reference: str, answer_type: str, part: str) -> bool:
    """Returns whether a short answer is right: within 0.001, the same letter, or a text that the reference contains.

    An empty text is contained in every reference. Without a readable letter, one that occurs in the first three
    characters of the reply counts.
    """
    if answer_type == FLOAT:
        return answer is not None and abs(float(answer) - float(reference)) <= TOLERANCE
    if answer_type == MULTIPLE_CHOICE:
        return reference in part[:3].upper() if answer is None else answer == reference
    return answer is not None and str(answer).lower() in reference.lower()
