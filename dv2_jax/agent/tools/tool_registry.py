"""The registry of tools: a configuration names registered ones, or a class by its import path."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence

from dv2_jax.agent.tools.base import NOT_TOOLS, Tool
from dv2_jax.config import AgentConfig, ConfigError
from dv2_jax.config.overrides import suggest

_TOOLS: dict[str, Tool] = {}
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_OTHER_TAGS = ("think", "answer", "image", "video")  # tags of the protocol that no tool may take


def register_tool(tool: type[Tool]) -> type[Tool]:
    """Registers a class of tools under its `name`; a class decorator.

    Raises:
        ValueError: the name or tag is invalid, or another class has that name.
    """
    name, tag = getattr(tool, "name", ""), getattr(tool, "tag", "")
    if not _IDENTIFIER.fullmatch(name) or name in NOT_TOOLS:
        raise ValueError(
            f"{tool.__qualname__}.name = {name!r}: use lower-case letters, digits and _, and none of {NOT_TOOLS}"
        )
    if not _IDENTIFIER.fullmatch(tag) or tag in _OTHER_TAGS:
        raise ValueError(
            f"{tool.__qualname__}.tag = {tag!r}: use lower-case letters, digits and _, and none of {_OTHER_TAGS}"
        )
    present = _TOOLS.get(name)
    if present is not None and _identity(type(present)) != _identity(tool):
        raise ValueError(f"tool {name!r} is registered already, by {'.'.join(_identity(type(present)))}")
    _TOOLS[name] = tool()
    return tool


def _identity(tool: type[Tool]) -> tuple[str, str]:
    return tool.__module__, tool.__qualname__


def find_tool(name: str) -> Tool | None:
    """Returns the registered tool of that name, or None."""
    return _TOOLS.get(name)


def run_tools(config: AgentConfig) -> tuple[Tool, ...]:
    """Returns the tools of a run, in the order of `agent.tools`, in which they try to parse a turn.

    Raises:
        ConfigError: a tool is unknown, cannot be imported or is named twice.
    """
    return _resolve(tuple(config.tools))


def default_tools() -> tuple[Tool, ...]:
    """Returns the tools of the default configuration: those of DeepEyesV2."""
    return run_tools(AgentConfig())


@functools.lru_cache(maxsize=64)
def _resolve(names: tuple[str, ...]) -> tuple[Tool, ...]:
    tools = tuple(_find(name) for name in names)
    for index, tool in enumerate(tools):
        if tool in tools[:index]:
            raise ConfigError(f"agent.tools: {tool.name!r} is named twice")
    return tools


def _find(name: str) -> Tool:
    if name in _TOOLS:
        return _TOOLS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"agent.tools: {name!r} is none of {', '.join(_TOOLS)}{suggest(name, _TOOLS)};"
            " a tool elsewhere is package.module:ClassName"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"agent.tools: cannot import {name!r}: {error}") from None
    if not (inspect.isclass(found) and issubclass(found, Tool)):
        raise ConfigError(f"agent.tools: {name!r} is no subclass of dv2_jax.agent.tools.base.Tool")
    if missing := ", ".join(sorted(found.__abstractmethods__)):
        raise ConfigError(f"agent.tools: {name!r} does not implement {missing}")
    try:
        register_tool(found)
    except ValueError as error:
        raise ConfigError(f"agent.tools: {error}") from None
    return _TOOLS[found.name]


def stop_strings(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the closing tags at which generation stops."""
    return tuple(dict.fromkeys(tool.stop_string for tool in tools))


def protocol_tags(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the names of all tags of the tools, which are escaped in tool output."""
    return tuple(dict.fromkeys(tag for tool in tools for tag in (tool.tag, *tool.output_tags)))


def use_titles(tools: Sequence[Tool]) -> dict[str, str]:
    """Returns the classes of tool uses with their titles, in the order of the tools."""
    return {use: title for tool in tools for use, title in tool.uses.items()}
