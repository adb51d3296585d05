"""The rule of LogicVista: the letters that a judge extracts must be those of the reference."""

from __future__ import annotations

import re

_BARE = re.compile(r"\(?[A-Z]\)?\.?|[A-Z](?:\s*,\s*[A-Z])+")


def bare_letters(reply: str) -> str | None:
    """Returns the letters of a reply that consists of nothing else (`B`, `(B)`, `A, C`), so that none need extraction."""
    reply = reply.strip()
    return "".join(re.findall("[A-Z]", reply)) if _BARE.fullmatch(reply) else None


def read_letters(reply: str) -> str | None:
    """Returns a judge's reply if it consists of capital letters alone; None: it names no letters."""
    reply = reply.strip()
    return reply if reply.isalpha() and reply.isupper() else None


def same_letters(letters: str, reference: str) -> bool:
    """Returns whether letters are those of a reference such as `A, C`, in any order."""
    return sorted(letters.lower()) == sorted("".join(reference.lower().split(", ")))
