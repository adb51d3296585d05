"""The base of tools that are called with a JSON object between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

import abc
import json
import re
from typing import Any, ClassVar

from dv2_jax.agent.tools import tool_registry
from dv2_jax.agent.tools.base import ParsedTurn, Tool, malformed

_CALLS = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class JsonCallTool(Tool, abc.ABC):
    """A tool that is called with `{"name": NAME, "arguments": {...}}`. Of several calls in a turn the last counts."""

    tag: ClassVar[str] = "tool_call"

    @abc.abstractmethod
    def parse_arguments(self, arguments: Any, raw: str) -> ParsedTurn:
        """Parses the value of `arguments` (None where it is missing); `raw` is the JSON text, for errors."""

    def parse(self, text: str) -> ParsedTurn | None:
        if self.opening_tag not in text:
            return None
        call = _last_call(text)
        if isinstance(call, ParsedTurn):
            return call
        raw, content = call
        return self.parse_arguments(content.get("arguments"), raw) if content.get("name") == self.name else None

    def reject(self, text: str) -> ParsedTurn | None:
        if self.opening_tag not in text:
            return None
        call = _last_call(text)
        return call if isinstance(call, ParsedTurn) else malformed(f"Error: Invalid tool call name: {call[0]}.")

    def is_called_in(self, text: str) -> bool:
        """Returns True for a call that names this tool, or that names no known tool: the format reward counts it."""
        blocks = text.split(self.opening_tag)[1:]
        return any(_named_tool(block.partition(self.stop_string)[0]) in (self.name, None) for block in blocks)


def _last_call(text: str) -> tuple[str, dict] | ParsedTurn:
    """Returns the JSON text and object of the last call, or the error of a call that is no object."""
    blocks = _CALLS.findall(text)
    if not blocks:
        return _invalid_format(text.rsplit("<tool_call>", 1)[1].strip(), "</tool_call> is missing")
    raw = blocks[-1].strip()
    try:
        call = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return _invalid_format(raw, str(error))
    return (raw, call) if isinstance(call, dict) else _invalid_format(raw, "not a JSON object")


def _named_tool(raw: str) -> str | None:
    """Returns the registered tool of this kind that a call names, or None."""
    try:
        name = json.loads(raw)["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str) and isinstance(tool_registry.find_tool(name), JsonCallTool) else None


def _invalid_format(raw: str, reason: str) -> ParsedTurn:
    return malformed(f"Error: Invalid tool call format: {raw}. Error: {reason}")


def text_problem(text: str) -> str | None:
    """Returns the reason for which a text argument cannot be sent to a tool, or None.

    JSON escapes can write what no tokenizer decodes: half of a surrogate pair, and the character NUL.
    """
    if "\0" in text:
        return "must not contain the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must not contain half of a surrogate pair"
    return None
