"""Parses an assistant turn: an answer, a code cell, or one search.

A turn that breaks the format is `malformed`: it becomes an observation from which the policy can recover. The
released code ends the trajectory instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["answer", "code", "search", "image_search", "malformed", "none"]
STOP_STRINGS = ("</code>", "</tool_call>")  # generation stops at the token that completes one of these


_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_FENCE = re.compile(r"```python\s*\n(.*?)\n```", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

# These contain no tags, because the format reward counts tags over the entire trajectory, observations included.
NO_ACTION = "Error: No action found. Write a code block, a tool call or an answer that is not empty."
NO_CODE = (
    "Error: No runnable code. Between the code tags, put it in a fence that opens with ```python and closes with ```."
)


@dataclass(frozen=True)
class ParsedTurn:
    """One parsed assistant turn.

    `payload` is the answer, the code, or the query. For the kinds `malformed` and `none` it is empty, and `error`
    is the text that the policy observes. `error_includes_row_id` marks errors that the released code ends with the
    index of the dataset row.
    """

    kind: Kind
    payload: str = ""
    error: str = ""
    error_includes_row_id: bool = False

    @property
    def calls_tool(self) -> bool:
        return self.kind in ("code", "search", "image_search")


def parse_turn(text: str) -> ParsedTurn:
    """Parses one assistant turn; an answer precedes code, and code precedes search.

    The first non-empty answer counts; of code blocks and tool calls, the last one counts.
    """
    answers = [answer.strip() for answer in _ANSWER.findall(text)]
    if any(answers):
        return ParsedTurn("answer", next(answer for answer in answers if answer))
    if "<code>" in text:
        return _parse_code(text)
    if "<tool_call>" in text:
        return _parse_search(text)
    return ParsedTurn("none", error=NO_ACTION)


def _parse_code(text: str) -> ParsedTurn:
    blocks = _CODE.findall(text)
    fences = _FENCE.findall(blocks[-1]) if blocks else []
    if not fences or not fences[-1].strip():
        return ParsedTurn("malformed", error=NO_CODE)
    return ParsedTurn("code", fences[-1])


def _parse_search(text: str) -> ParsedTurn:
    blocks = _TOOL_CALL.findall(text)
    if not blocks:
        raw = text.rsplit("<tool_call>", 1)[1].strip()
        return _invalid_format(raw, "</tool_call> is missing")
    raw = blocks[-1].strip()
    try:
        call = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return _invalid_format(raw, str(error))
    if not isinstance(call, dict):
        return _invalid_format(raw, "not a JSON object")
    name, arguments = call.get("name"), call.get("arguments")
    if name == "image_search":
        if arguments is not None:
            return ParsedTurn("malformed", error=f"Error: Invalid tool call parameters for image search: {raw}.")
        return ParsedTurn("image_search")
    if name != "search":
        return ParsedTurn("malformed", error=f"Error: Invalid tool call name: {raw}.")
    query = arguments.get("query") if isinstance(arguments, dict) else None
    if query is None:
        return ParsedTurn("malformed", error="Error: 'query'", error_includes_row_id=True)
    if not isinstance(query, str) or not query.strip():
        return ParsedTurn(
            "malformed", error="Error: 'query' must be a string that is not empty", error_includes_row_id=True
        )
    return ParsedTurn("search", query)


def _invalid_format(raw: str, reason: str) -> ParsedTurn:
    return ParsedTurn("malformed", error=f"Error: Invalid tool call format: {raw}. Error: {reason}")
