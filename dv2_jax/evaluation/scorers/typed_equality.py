"""The rule of MathVista: equality of an extracted answer and the reference, by the type of the answer."""

from __future__ import annotations

from collections.abc import Mapping

from dv2_jax.evaluation.scorers.choice_inference import infer_choice

MULTI_CHOICE = "multi_choice"


def read_typed(text: str, answer_type: str) -> int | float | None:
    """Returns the number that a text is, if the question asks for an `integer` or a `float`; None for anything else."""
    try:
        return {"integer": int, "float": float}[answer_type](text)
    except (KeyError, ValueError, OverflowError):
        return None


def typed_equal(text: str, reference: str, answer_type: str) -> bool:
    """Returns whether an extracted answer equals the reference of a free-form question.

    `14.0` is no integer, and decimals are not rounded to the precision of the question, although its hint asks for it.
    Answers that are lists or texts are never right: VLMEvalKit compares the reference with the word `None`.
    """
    if answer_type not in ("integer", "float"):
        return reference == "None"
    value, target = read_typed(text, answer_type), read_typed(reference, answer_type)
    return value is not None and value == target


def choice_equal(text: str, reference: str, choices: Mapping[str, str]) -> bool | None:
    """Returns whether an answer names the option `reference`; None if it names no option clearly."""
    named = infer_choice(text, choices)
    return None if named is None else named == reference
