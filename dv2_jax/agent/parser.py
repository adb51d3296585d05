"""The grammar of an assistant turn (spec 2.1, 2.7): answer, code, or one search.

What the policy got wrong is ``malformed``: it becomes an observation from which it can recover, where the
released code ended the trajectory.
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

# No tags in these: the rewards count tags over the whole trajectory, observations included.
NO_ACTION = "Error: No action found. Write a code block, a tool call or an answer that is not empty."
NO_CODE = (
    "Error: No runnable code. Between the code tags, put it in a fence that opens with ```python and closes with ```."
)


@dataclass(frozen=True)
class Turn:
    """What a turn asks for.

    ``payload`` is the answer, the code, or the query; for ``malformed`` and ``none`` it is empty and ``error``
    is what the policy gets to read; ``names_row``: the released layout ends it with the row's index.
    """

    kind: Kind
    payload: str = ""
    error: str = ""
    names_row: bool = False

    @property
    def calls_tool(self) -> bool:
        return self.kind in ("code", "search", "image_search")


def parse_turn(text: str) -> Turn:
    """Reads one assistant turn; answer before code before search, and the last block of its kind counts."""
    answers = [found.strip() for found in _ANSWER.findall(text)]
    if any(answers):
        return Turn("answer", next(answer for answer in answers if answer))
    if "<code>" in text:
        return _parse_code(text)
    if "<tool_call>" in text:
        return _parse_search(text)
    return Turn("none", error=NO_ACTION)


def _parse_code(text: str) -> Turn:
    blocks = _CODE.findall(text)
    fences = _FENCE.findall(blocks[-1]) if blocks else []
    if not fences or not fences[-1].strip():
        return Turn("malformed", error=NO_CODE)
    return Turn("code", fences[-1])


def _parse_search(text: str) -> Turn:
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
            return Turn("malformed", error=f"Error: Invalid tool call parameters for image search: {raw}.")
        return Turn("image_search")
    if name != "search":
        return Turn("malformed", error=f"Error: Invalid tool call name: {raw}.")
    query = arguments.get("query") if isinstance(arguments, dict) else None
    if query is None:
        return Turn("malformed", error="Error: 'query'", names_row=True)
    if not isinstance(query, str) or not query.strip():
        return Turn("malformed", error="Error: 'query' must be a string that is not empty", names_row=True)
    return Turn("search", query)


def _invalid_format(raw: str, reason: str) -> Turn:
    return Turn("malformed", error=f"Error: Invalid tool call format: {raw}. Error: {reason}")
