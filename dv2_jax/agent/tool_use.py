"""Counts the uses of tools by class: code cells by purpose (crop, numerical, mark, other), other tools by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import default_tools, use_titles
from dv2_jax.agent.trajectory import TurnRecord


def tool_kinds(turns: Iterable[TurnRecord], tools: Sequence[Tool] | None = None) -> Counter[str]:
    """Counts every class of use of `tools` over the turns of one or many trajectories; unused classes count 0.

    A turn whose call was not executed (the last permitted one) does not count.
    """
    tools = default_tools() if tools is None else tools
    counts: Counter[str] = Counter(dict.fromkeys(use_titles(tools), 0))
    by_name = {tool.name: tool for tool in tools}
    for turn in turns:
        if turn.status is not None and turn.kind in by_name:
            counts[by_name[turn.kind].classify(turn.text, len(turn.images))] += 1
    return counts


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Returns the share of each class, summing to 1; all shares are 0 when no tool was called."""
    total = sum(counts.values())
    return {kind: count / total if total else 0.0 for kind, count in counts.items()}
