"""Reads a three-way verdict (correct, incorrect, not attempted) and computes the F1 of SimpleVQA."""

from __future__ import annotations

import json
from collections.abc import Sequence

CORRECT, INCORRECT, NOT_ATTEMPTED = "correct", "incorrect", "not attempted"
_WORDS = {"正确": CORRECT, "错误": INCORRECT, "未尝试": NOT_ATTEMPTED}
_WORDS |= {word: word for word in (CORRECT, INCORRECT, NOT_ATTEMPTED)}


def read_three_way(reply: str) -> str | None:
    """Returns the verdict in a reply, in English or Chinese, alone or as the first value of a JSON object; None: none.

    A text of more than three Chinese characters in place of a verdict counts as not attempted, as in VLMEvalKit.
    """
    text = reply.replace("```json", "").replace("```python", "").replace("```", "").strip()
    if text.startswith("{"):
        try:
            values = list(json.loads(text if text.endswith("}") else text + "}").values())
        except (ValueError, RecursionError):
            return None
        value = values[0] if values else ""
        if isinstance(value, dict):
            return _WORDS.get(str(value.get("conclusion", "")).replace("**", "").strip().lower())
        cleaned = str(value).replace("**", "").strip()
        return _WORDS.get(cleaned.lower()) or (NOT_ATTEMPTED if len(cleaned) > 3 else None)
    return _WORDS.get(text.replace("**", "").strip().rstrip(".").lower())


def f1(verdicts: Sequence[str]) -> float:
    """Returns the harmonic mean of the accuracy over all questions and the accuracy over attempted ones."""
    right, attempted = verdicts.count(CORRECT), len(verdicts) - verdicts.count(NOT_ATTEMPTED)
    return 2 * right / (len(verdicts) + attempted) if right else 0.0
