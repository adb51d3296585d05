"""Exact match and token F1 after the normalization of open-domain question answering: MMSearch's official metric."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns `text` in lower case without ASCII punctuation, articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Returns whether the prediction equals a reference after normalization; an empty form equals nothing."""
    normalized = normalize_answer(prediction)
    return bool(normalized) and any(normalized == normalize_answer(reference) for reference in references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the largest F1 of normalized tokens over the references; two empty sides agree."""
    return max((_f1(prediction, reference) for reference in references), default=0.0)


def _f1(prediction: str, reference: str) -> float:
    found, wanted = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))
