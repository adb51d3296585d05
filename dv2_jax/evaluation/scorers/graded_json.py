"""Reads the verdict of CharXiv's judge: a JSON object with the extracted answer and a score."""

from __future__ import annotations

import json
import re

EXTRACTED_KEYS = ("extract_answer", "extracted_answer")  # of ms-vlmeval 0.0.20, and of later versions
_FENCED = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)


def read_grade(reply: str) -> tuple[float, str] | None:
    """Returns the score and the extracted answer of a reply, which may be in a code block; None: it has no verdict.

    VLMEvalKit asks ten times at temperature 0 and then counts 0; it refuses code blocks.
    """
    fenced = _FENCED.match(reply.strip())
    content = _object(fenced[1] if fenced else reply)
    key = next((key for key in EXTRACTED_KEYS if key in content), None)
    if key is None:
        return None
    try:
        score = float(content["score"])
    except (KeyError, TypeError, ValueError):
        return None
    return (score, str(content[key])) if 0 <= score <= 1 else None


def read_grade_deepeyesv2(reply: str) -> tuple[float, str]:
    """Returns what the released evaluation reads: code blocks and other keys are failures, which count 0."""
    content = _object(reply)
    if EXTRACTED_KEYS[0] not in content or content.get("score") not in (0, 1):
        return 0.0, ""
    return float(content["score"]), str(content[EXTRACTED_KEYS[0]])


def _object(text: str) -> dict:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
