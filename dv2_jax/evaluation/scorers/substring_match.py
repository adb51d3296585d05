"""The rule of OCRBench: a reply is right if it contains one of the reference texts."""

from __future__ import annotations

from collections.abc import Sequence

FORMULAS = "Handwritten Mathematical Expression Recognition"


def contains_reference(reply: str, references: Sequence[str], category: str) -> bool:
    """Returns whether the reply contains a reference: in any letter case, or for formulas without regard to blanks.

    A longer reply contains more, and so is right more often.
    """
    clean = _without_blanks if category == FORMULAS else _lower
    return any(clean(reference) in clean(reply) for reference in references)


def _lower(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_blanks(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")
