"""Whether a prediction says the same as the reference: rules for text, numbers, choices and mathematics.

Strict by design. A rule that searched the prediction for the answer would pay for lists of guesses; here the
prediction as a whole must be the answer, up to spelling.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.rewards.numbers import equal_numbers, read_number

_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence),? )?(?:the |my )?(?:final )?(?:answer|result)(?: is|:| =)\s*", re.IGNORECASE
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_QUIET = re.compile(
    r"(?<!\d)[.,:](?=\d)|(?<=\d)[.,:](?!\d)|(?<!\d)[.,:](?!\d)|[;!?\"'`()\[\]{}«»“”„‘’…_*\u2010-\u2015-]"
)
_LABEL = re.compile(r"^(?:option |choice )?[(\[]?([A-Za-z])[)\]]?(?:[.:]|$|(?<=[)\]])\s)", re.IGNORECASE)
_MAX_MATH_CHARS = 2000  # a longer expression is no answer and could keep the parser busy


def equivalent(prediction: str | None, answer: str, verifier: str, meta: Mapping[str, Any] | None = None) -> bool:
    """Whether ``prediction`` is right.

    Args:
        prediction: the content of ``<answer>``; None or blank is wrong.
        answer: the reference.
        verifier: ``text`` (spelling, accents, case, articles and punctuation do not matter; ``meta["aliases"]``
            are right too), ``number`` (``meta["tolerance"]`` absolute, ``meta["relative_tolerance"]``,
            ``meta["unit"]``), ``choice`` (label or text of ``meta["choices"]``) or ``math`` (math-verify).

    Raises:
        ValueError: unknown verifier, or a ``number`` reference that is none.
    """
    meta = meta or {}
    if verifier not in _VERIFIERS:
        raise ValueError(f"verifier {verifier!r} is none of {', '.join(_VERIFIERS)}")
    if prediction is None or not prediction.strip():
        return False
    return _VERIFIERS[verifier](_LEAD.sub("", prediction.strip()), answer, meta)


def normalize(text: str) -> str:
    """Case, accents, width, articles, punctuation and spacing taken away; digits keep their separators."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(char for char in text if not unicodedata.combining(char))
    text = _QUIET.sub(" ", text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _text(prediction: str, answer: str, meta: Mapping[str, Any]) -> bool:
    said = normalize(prediction)
    for accepted in (answer, *meta.get("aliases", ())):
        wanted = normalize(accepted)
        # Articles are all of some answers ("A", "The The"): then spelling decides.
        if (said == wanted) if wanted else prediction.strip().casefold() == accepted.strip().casefold():
            return True
        reference = read_number(accepted, alone=True)
        if reference is not None and equal_numbers(read_number(prediction, alone=True), reference, {}):
            return True
    return False


def _number(prediction: str, answer: str, meta: Mapping[str, Any]) -> bool:
    reference = read_number(answer)
    if reference is None:
        raise ValueError(f"the reference {answer!r} of a number question is no number")
    return equal_numbers(read_number(prediction), reference, meta)


def _choice(prediction: str, answer: str, meta: Mapping[str, Any]) -> bool:
    choices = meta.get("choices", {})
    if isinstance(choices, Sequence):
        choices = {chr(ord("A") + index): text for index, text in enumerate(choices)}
    said, wanted = _chosen(prediction, choices), _chosen(answer, choices)
    return said == wanted if said and wanted else normalize(prediction) == normalize(answer)


def _chosen(text: str, choices: Mapping[str, str]) -> str | None:
    """The label that ``text`` names, by itself or by the wording of its choice."""
    by_wording = [label for label, wording in choices.items() if normalize(wording) == normalize(text)]
    if len(by_wording) == 1:
        return by_wording[0].upper()
    named = _LABEL.match(text.strip())
    return named.group(1).upper() if named else None


def _math(prediction: str, answer: str, meta: Mapping[str, Any]) -> bool:
    if _text(prediction, answer, meta) or _latex(prediction) == _latex(answer):
        return True
    if max(len(prediction), len(answer)) > _MAX_MATH_CHARS:
        return False
    try:
        import math_verify
    except ImportError:
        return False
    # math-verify keeps time by signals, which only the main thread can receive.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    sides = [
        math_verify.parse(side if "$" in side or "\\boxed" in side else f"${side}$", parsing_timeout=seconds)
        for side in (answer, prediction)
    ]
    return bool(all(sides) and math_verify.verify(*sides, timeout_seconds=seconds))


def _latex(text: str) -> str:
    text = re.sub(r"\\(?:boxed|text|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\left|\\right|\\[,;! ]|\$|\s", "", text).rstrip(".").casefold()


_VERIFIERS = {"text": _text, "number": _number, "choice": _choice, "math": _math}
