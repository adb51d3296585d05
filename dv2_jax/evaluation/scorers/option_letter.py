r"""Reads the option letter of a reply as MME-RealWorld and TreeBench do: the first of A to E, wherever it occurs."""

from __future__ import annotations

import re

# The list in VLMEvalKit has four more, two of which lack a comma and so never match; "Best answer: C" is read as B.
_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_LETTERS = "ABCDE"
_LONG = 10  # words
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = re.compile(r".*\\boxed\{([^}]*)\}")


def read_letter(reply: str) -> str:
    """Returns the first capital A to E of a reply, after removing phrases such as "The best answer is"; empty: none.

    A reply without one is looked up in `(A)` to `(E)` in any letter case: `b` is B, and an empty reply is A.
    """
    text = reply.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = re.search(f"[{_LETTERS}]", text)
    if found:
        return found[0]
    if len(text.split()) > _LONG:
        return ""
    return next((letter for letter in _LETTERS if text.lower() in f"({letter})".lower()), "")


def read_tagged_letter(reply: str) -> str:
    """Returns the letter in the first `<answer>`, in upper case, or else in the entire reply."""
    tagged = _TAGGED.search(reply)
    return read_letter(tagged[1].strip().upper() if tagged else reply)


def read_letter_deepeyesv2(reply: str) -> str:
    r"""Returns what the released evaluation reads: `\boxed{(A)}` gives `(A)`, which equals no answer; else as usual."""
    tagged = _TAGGED.search(reply)
    text = tagged[1].strip().upper() if tagged else reply
    boxed = _BOXED.search(text.strip())
    if boxed and boxed[1] in {f"({letter})" for letter in _LETTERS}:
        return boxed[1]
    return read_letter(text)
