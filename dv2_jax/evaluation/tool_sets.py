"""The tools of an evaluated policy: those of the benchmark's protocol, or a set that `eval.tool_sets` names."""

from __future__ import annotations

import re
from dataclasses import replace

from dv2_jax.agent.tools.image_search import ImageSearchTool
from dv2_jax.agent.tools.search import SearchTool
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import AgentConfig, Config, ConfigError
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark

PROTOCOL, ALL = "protocol", "all"
SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "text_search": (SearchTool.name,),
    ImageSearchTool.name: (ImageSearchTool.name,),
    "both_searches": (SearchTool.name, ImageSearchTool.name),
}
_TITLES = {"none": "without tools", ALL: "all tools"}


def stage_agent(agent: AgentConfig, benchmark: Benchmark, tool_set: str = PROTOCOL) -> AgentConfig:
    """Returns `agent` with exactly the tools of the set, and with a system prompt that describes no absent search.

    Raises:
        ConfigError: a tool is unknown.
    """
    if tool_set == PROTOCOL:
        names = agent.tools if benchmark.tools is None else tuple(benchmark.tools)
    elif tool_set == ALL:
        names = agent.tools
    else:
        names = SETS.get(tool_set, tuple(filter(None, tool_set.split("+"))))
    restricted = replace(agent, tools=tuple(names))
    searches = any(tool.is_search for tool in run_tools(restricted))
    return replace(restricted, system_prompt="full_no_search") if _describes_absent(agent, searches) else restricted


def _describes_absent(agent: AgentConfig, searches: bool) -> bool:
    return agent.system_prompt == "full" and not searches


def check_tool_sets(config: Config) -> None:
    """Raises ConfigError if a set of `eval.tool_sets` is unknown, empty or named twice."""
    sets = config.eval.tool_sets
    if not sets:
        raise ConfigError(f"eval.tool_sets is empty: use {PROTOCOL}, or others of its help text")
    for index, name in enumerate(sets):
        if name in sets[:index]:
            raise ConfigError(f"eval.tool_sets: {name!r} is named twice")
        if name in (PROTOCOL, ALL) or name in SETS:
            continue
        try:
            run_tools(replace(config.agent, tools=tuple(name.split("+"))))
        except ConfigError as error:
            known = ", ".join([PROTOCOL, *SETS, ALL])
            raise ConfigError(f"eval.tool_sets: {name!r} is none of {known}, and no list of tools: {error}") from None


def all_tools(config: Config, benchmarks: list[Benchmark]) -> tuple[str, ...]:
    """Returns the tools of every stage, those of `agent.tools` first: generation stops at the closing tags of each."""
    names = list(config.agent.tools)
    for benchmark in benchmarks:
        for tool_set in config.eval.tool_sets:
            names += stage_agent(config.agent, benchmark, tool_set).tools
    return tuple(dict.fromkeys(names))


def set_suffix(tool_set: str) -> str:
    """Returns the part of a stage's name that names its tool set; empty for the protocol's."""
    return "" if tool_set == PROTOCOL else "-" + re.sub(r"[^A-Za-z0-9._-]", "_", tool_set.replace("+", "."))


def set_title(tool_set: str) -> str:
    """Returns the part of a stage's title that names its tool set; empty for the protocol's."""
    if tool_set == PROTOCOL:
        return ""
    return _TITLES.get(tool_set, tool_set.replace("+", " + ").replace("_", " "))
