"""Titles of the policies that a run evaluates, also for runs stored before 0.2.

A `summary.json` or `results.json` has one entry per evaluated policy, keyed by its name, and a list `stages` with name,
title and `model.init` of each, in display order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INITIAL, FINAL = "initial", "final"  # the policy before and after the training of a run
TITLES = {FINAL: "RL", "cold_start": "cold start", "rl": "RL", "evaluate": "result", "no_tools": "no tools"}
TRAJECTORY_TITLES = {FINAL: "after RL", "rl": "after RL", "train": "RL", "evaluate": "evaluation"}
NAMES_BEFORE_0_2 = {"cold_start": INITIAL, "rl": FINAL}  # names without a list `stages` in the summary


def stage_titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the title of every evaluated policy by name, in display order."""
    listed: Sequence[Mapping[str, str]] = summary.get("stages", ())
    titles = {stage["name"]: stage["title"] for stage in listed if stage["name"] in summary}
    return titles or {name: stage_title(name) for name, part in summary.items() if is_result(part)}


def stage_title(name: str, titles: Mapping[str, str] | None = None) -> str:
    """Returns the title of an evaluated policy in a table."""
    return (titles or {}).get(name) or TITLES.get(name, name.replace("_", " "))


def trajectory_title(name: str, titles: Mapping[str, str] | None = None) -> str:
    """Returns the title of a trajectory's stage, with its benchmark; RL is a stage of training and the policy after it."""
    stage, _, benchmark = name.partition("@")
    title = TRAJECTORY_TITLES.get(stage) or stage_title(stage, titles)
    return f"{title}, {benchmark}" if benchmark else title


def benchmark_stage(stage: str, benchmark: str, *, is_first: bool) -> str:
    """Returns the name of the trajectory file of a policy on a benchmark; that of the run's first has no suffix."""
    return stage if is_first else f"{stage}@{benchmark}"


def is_result(part: Any) -> bool:
    """Returns True for the entry of an evaluated policy, which has results per skill and overall."""
    return isinstance(part, Mapping) and isinstance(part.get("overall"), Mapping)
