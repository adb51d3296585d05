"""Relaxed accuracy, the rule of ChartQA (arXiv 2203.10244, section 5.1): numbers within 5 %, other answers equal."""

from __future__ import annotations

TOLERANCE = 0.05  # relative to the reference


def relaxed_numbers(reference: str, prediction: str) -> bool | None:
    """Returns whether two numbers agree within 5 % of the reference; None if either is no number, or the reference is 0.

    `12%` is 0.12.
    """
    predicted, target = _number(prediction), _number(reference)
    if predicted is None or not target:
        return None
    return abs(predicted - target) / abs(target) <= TOLERANCE


def relaxed_equal(reference: str, prediction: str) -> bool:
    """Returns whether an answer agrees with a reference: numbers within 5 %, anything else in any letter case.

    Nothing is tolerated for a reference of 0: `0.0` does not equal `0`.
    """
    numbers = relaxed_numbers(reference, prediction)
    return prediction.lower() == reference.lower() if numbers is None else numbers


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
