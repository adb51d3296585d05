"""The registry of tools: a configuration names registered ones, or a class by its import path."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from dv2_jax.agent.tools.base import NOT_TOOLS, Tool
from dv2_jax.config import AgentConfig, ConfigError
from dv2_jax.config.registry import Registry

TOOLS: Registry[type[Tool]] = Registry("tool", "agent.tools", base=Tool)
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
    return TOOLS.register(name)(tool)


def find_tool(name: str) -> Tool | None:
    """Returns the registered tool of that name, or None."""
    return _instance(TOOLS.entries[name]) if name in TOOLS.entries else None


@functools.cache
def _instance(tool: type[Tool]) -> Tool:
    return tool()


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
            raise ConfigError(f"{TOOLS.key}: {tool.name!r} is named twice")
    return tools


def _find(name: str) -> Tool:
    tool = TOOLS.get(name)
    if name not in TOOLS.entries:  # an import path
        try:
            register_tool(tool)
        except ValueError as error:
            raise ConfigError(f"{TOOLS.key}: {error}") from None
    return _instance(tool)


def stop_strings(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the closing tags at which generation stops."""
    return tuple(dict.fromkeys(tool.stop_string for tool in tools))


def protocol_tags(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the names of all tags of the tools, which are escaped in tool output."""
    return tuple(dict.fromkeys(tag for tool in tools for tag in (tool.tag, *tool.output_tags)))


def use_titles(tools: Sequence[Tool]) -> dict[str, str]:
    """Returns the classes of tool uses with their titles, in the order of the tools."""
    return {use: title for tool in tools for use, title in tool.uses.items()}
