"""Compares answers to multiple-choice questions: by label, by an option's wording, or by both together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.rewards.answer_format import fold_characters, unwrap
from dv2_jax.rewards.math_matching import equal_literals
from dv2_jax.rewards.text_matching import text_matches

_OPTION = re.compile(r"^(?:option|choice|answer|letter)\s+", re.IGNORECASE)
_IS_CORRECT = re.compile(
    r"\s+is\s+(?:the\s+)?(?:correct|right|answer|correct answer|right answer|best answer)$", re.IGNORECASE
)
_ENCLOSED = re.compile(r"^(?:\(\s*(\w+)\s*\)|\[\s*(\w+)\s*\]|\{\s*(\w+)\s*\})\s*[.:,-]?\s*(.*)$", re.DOTALL)
_SEPARATED = re.compile(r"^(\w+)\s*(?:\.(?!\d)|[:)]|,(?!\s*[-\d])|(?<=\s)-\s(?!\s*\d))\s*(.*)$", re.DOTALL)
_CONJUNCTION = re.compile(r"\s*(?:[,;&]|\band\b)\s*", re.IGNORECASE)
_HEDGE = re.compile(r"\b(?:not|or|maybe|either|neither|wrong|incorrect)\b", re.IGNORECASE)


def choice_matches(prediction: str, reference: str, meta: Mapping[str, Any]) -> bool:
    """Returns whether both name the same option, or the same set of options.

    `meta["choices"]` holds the wordings, as a list (labels A, B, ...) or by label. Without it only labels are compared.
    """
    choices = _labeled(meta.get("choices"))
    pred, target = chosen_labels(prediction, choices), chosen_labels(reference, choices)
    if pred and target:
        return pred == target
    return not target and text_matches(prediction, reference)


def names_an_option(reference: str, meta: Mapping[str, Any]) -> bool:
    """Returns whether a reference answer names one of `meta["choices"]`, or several; True without choices."""
    choices = _labeled(meta.get("choices"))
    return not choices or chosen_labels(reference, choices) is not None


def chosen_labels(text: str, choices: Mapping[str, str]) -> frozenset[str] | None:
    """Returns the labels that `text` names, by themselves or by an option's wording; None where that is not clear."""
    text = unwrap(fold_characters(unwrap(text)))
    bare = unwrap(_OPTION.sub("", _IS_CORRECT.sub("", text)))
    label = _label(bare, choices)
    if label:
        return frozenset(label)
    worded = [label for label, wording in choices.items() if _same_wording(text, wording)]
    if worded:
        return frozenset(worded) if len(worded) == 1 else None
    for pattern in (_ENCLOSED, _SEPARATED):
        if found := pattern.match(bare):
            *labels, rest = found.groups()
            label = _label(next(name for name in labels if name), choices)
            if label and _confirms(rest.strip(), label, choices):
                return frozenset(label)
    return _label_set(bare, choices)


def _labeled(choices: Any) -> dict[str, str]:
    if choices is None:
        return {}
    if hasattr(choices, "tolist"):  # an array from a Parquet file
        choices = choices.tolist()
    if isinstance(choices, Mapping):
        return {str(label).upper(): str(wording) for label, wording in choices.items()}
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        return {chr(ord("A") + index): str(wording) for index, wording in enumerate(choices)}
    raise ValueError(f"choices = {choices!r}: a list of wordings, or a mapping from label to wording")


def _label(text: str, choices: Mapping[str, str]) -> list[str] | None:
    enclosed = re.fullmatch(r"\(\s*(\w+)\s*\)|\[\s*(\w+)\s*\]|(\w+)\)", text)
    if enclosed:
        text = next(name for name in enclosed.groups() if name)
    label = text.upper()
    is_label = label in choices if choices else len(label) == 1 and label.isascii() and label.isalpha()
    return [label] if is_label else None


def _same_wording(text: str, wording: str) -> bool:
    return text_matches(text, wording) or equal_literals(text, wording)


def _confirms(rest: str, label: list[str], choices: Mapping[str, str]) -> bool:
    """Returns whether what follows a label supports it: nothing, its wording, or an explanation that names no other."""
    if not rest:
        return True
    if choices:
        agreeing = [other for other, wording in choices.items() if _same_wording(rest, wording)]
        if agreeing:
            return label[0] in agreeing
    names_another = re.search(r"(?<![\w'])(?:[B-HJ-Zb-hj-z](?![\w'])|[AaIi](?=\s*(?:[.,;:)]|$)))", rest)
    return not names_another and not _HEDGE.search(rest) and not re.match(r"[+=*/^<>]", rest)


def _label_set(text: str, choices: Mapping[str, str]) -> frozenset[str] | None:
    parts = [part for part in _CONJUNCTION.split(text) if part]
    if len(parts) == 1 and len(text) > 1 and text.isascii() and text.isalpha() and text.isupper():
        parts = list(text)  # "ACD"
        if len(set(parts)) < len(parts) or parts != sorted(parts) or (not choices and max(parts) > "J"):
            return None
    labels = [_label(part, choices) for part in parts]
    if len(labels) < 2 or not all(labels):
        return None
    named = frozenset(label[0] for label in labels)
    return named if len(named) == len(labels) else None
