"""Decides by rules whether an answer equals the reference: text, number, choice or mathematics.

The rules are strict: the entire prediction must be the answer, in any usual format. A rule that searched it for the
reference would pay for lists of guesses, and an accepted answer never reaches the judge. What the rules reject may
still be accepted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dv2_jax.rewards.choice_matching import choice_matches
from dv2_jax.rewards.math_matching import math_matches, open_questions
from dv2_jax.rewards.number_matching import number_matches, parse_quantity
from dv2_jax.rewards.text_matching import text_matches
from dv2_jax.rewards.verdict_pool import shared_pool

__all__ = ["answers_match", "answers_match_batch"]

_MAX_CHARS = 4000  # a longer prediction is no final answer; bounds the cost of the rules


def answers_match(prediction: str | None, reference: str, verifier: str, meta: Mapping[str, Any] | None = None) -> bool:
    """Returns whether `prediction` is right. Takes bounded time on any thread.

    Args:
        prediction: the content of `<answer>`; None or blank is wrong.
        reference: the right answer; the strings in `meta["aliases"]` are right too.
        verifier: `text`, `number` (`meta`: absolute `tolerance`, `relative_tolerance`, `unit`), `choice` (label or
            wording of `meta["choices"]`) or `math`.

    Raises:
        ValueError: the verifier is unknown, or the reference of `number` is no number.
        WorkerError: math-verify cannot be imported.
    """
    meta = meta or {}
    if verifier not in _MATCHERS:
        raise ValueError(f"verifier {verifier!r} is none of {', '.join(_MATCHERS)}")
    matches = _MATCHERS[verifier]
    if verifier == "number":
        number_matches(reference, reference, meta)  # a bad reference is an error whatever the prediction is
    if prediction is None or not prediction.strip() or len(prediction) > _MAX_CHARS:
        return False
    if matches(prediction, reference, meta):
        return True
    aliases = [alias for alias in _aliases(meta) if verifier != "number" or parse_quantity(alias)]
    return any(matches(prediction, alias, meta) for alias in aliases)


def answers_match_batch(
    rows: Sequence[tuple[str | None, str, str, Mapping[str, Any] | None]],
) -> list[bool]:
    """Returns `answers_match(*row)` for every row. What needs math-verify is decided by all workers in parallel."""
    pairs = []
    for prediction, reference, verifier, meta in rows:
        if verifier == "math" and prediction is not None and len(prediction) <= _MAX_CHARS:
            for accepted in (reference, *_aliases(meta or {})):
                pairs += open_questions(prediction, accepted) or ()
    shared_pool().verdicts(sorted(set(pairs)))  # kept in the pool's cache
    return [answers_match(*row) for row in rows]


def _aliases(meta: Mapping[str, Any]) -> list[str]:
    """Returns `meta["aliases"]`, which may be an array from a Parquet file; one string is one alias."""
    aliases = meta.get("aliases")
    if aliases is None:
        return []
    return [aliases] if isinstance(aliases, str) else [str(alias) for alias in aliases]


def _text(prediction: str, reference: str, meta: Mapping[str, Any]) -> bool:
    return text_matches(prediction, reference)


def _math(prediction: str, reference: str, meta: Mapping[str, Any]) -> bool:
    return math_matches(prediction, reference, shared_pool().verdict)


_MATCHERS: dict[str, Callable[[str, str, Mapping[str, Any]], bool]] = {
    "text": _text,
    "number": number_matches,
    "choice": choice_matches,
    "math": _math,
}
