"""Parses an assistant turn: an answer, or a call of one of the run's tools.

A turn that breaks the format is `malformed`: it becomes an observation from which the policy can recover. The
released code ends the trajectory instead.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from dv2_jax.agent.tools.base import ParsedTurn, Tool, malformed
from dv2_jax.agent.tools.tool_registry import default_tools

__all__ = ["ParsedTurn", "parse_turn"]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

# It contains no tags, because the format reward counts tags over the entire trajectory, observations included.
NO_ACTION = "Error: No action found. Write a code block, a tool call or an answer that is not empty."


def parse_turn(text: str, tools: Sequence[Tool] | None = None) -> ParsedTurn:
    """Parses one assistant turn; an answer precedes the tools, which are tried in their order.

    The first non-empty answer counts; of several calls of a tool, the last one counts.

    Args:
        tools: the tools of the run; by default those of DeepEyesV2, where code precedes search.
    """
    answers = [answer.strip() for answer in _ANSWER.findall(text)]
    if any(answers):
        return ParsedTurn("answer", next(answer for answer in answers if answer))
    tools = default_tools() if tools is None else tools
    for tool in tools:
        turn = _parse_call(tool, text)
        if turn is not None:
            return turn
    rejections = (tool.reject(text) for tool in tools)
    return next((turn for turn in rejections if turn is not None), ParsedTurn("none", error=NO_ACTION))


def _parse_call(tool: Tool, text: str) -> ParsedTurn | None:
    """Parses a call; an exception of the tool costs this turn, not the run, and is reported as a warning."""
    try:
        return tool.parse(text)
    except Exception as error:
        warnings.warn(f"tool {tool.name!r} failed to parse a turn: {type(error).__name__}: {error}", stacklevel=2)
        return malformed(f"Error: the call could not be read: {type(error).__name__}")
