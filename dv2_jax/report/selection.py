"""Selects the trajectories of the report page, few enough to embed in one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dv2_jax.report.trajectory_html import outcome, tools_of
from dv2_jax.telemetry.trajectories import read_trajectories, stages

STAGE_ORDER = ("evaluate", "final", "rl", "train", "initial", "cold_start")  # compared policies follow
PER_KIND = 2  # trajectories per skill and outcome of an evaluation
GROUPS_PER_STEP = 2  # groups (all samples of one question) per shown training step


def select(directory: Path) -> list[dict]:
    """Returns some records of each skill and outcome per evaluation, and entire groups of some training steps."""
    if not directory.is_dir():
        return []
    names = sorted(stages(directory), key=lambda name: STAGE_ORDER.index(name) if name in STAGE_ORDER else 99)
    chosen: list[dict] = []
    for name in names:
        records = list(read_trajectories(directory, name))
        trained = any(record.get("step") is not None for record in records)
        chosen += _training(records) if trained else _evaluation(records)
    return chosen


def _evaluation(records: Iterable[dict]) -> list[dict]:
    """Returns the first records of each (skill, outcome), with different tool sets, ordered by skill."""
    buckets: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        bucket = buckets.setdefault((record["question"]["skill"], outcome(record)), [])
        known = {tuple(tools_of(other)) for other in bucket}
        if len(bucket) < PER_KIND or (len(bucket) < 2 * PER_KIND and tuple(tools_of(record)) not in known):
            bucket.append(record)
    skills = list(dict.fromkeys(skill for skill, _ in buckets))
    return [
        record
        for skill in skills
        for result in ("right", "wrong", "lost")
        for record in buckets.get((skill, result), [])
    ]


def _training(records: Iterable[dict]) -> list[dict]:
    """Returns the groups with the widest reward spread (the largest gradients) of the first, middle and last step."""
    steps: dict[int, dict[str, list[dict]]] = {}
    for record in records:
        steps.setdefault(record["step"] or 0, {}).setdefault(record["question"]["id"], []).append(record)
    order = sorted(steps)
    shown = dict.fromkeys([order[-1], order[len(order) // 2], order[0]])
    return [
        record
        for step in shown
        for group in _highest_variance_groups(list(steps[step].values()))
        for record in sorted(group, key=lambda record: -(record["reward"] or 0.0))
    ]


def _highest_variance_groups(groups: list[list[dict]]) -> list[list[dict]]:
    """Returns the `GROUPS_PER_STEP` groups with the widest reward spread, preferring different skills."""
    groups = sorted(groups, key=_spread, reverse=True)
    skills = [group[0]["question"]["skill"] for group in groups]
    first = [i for i, skill in enumerate(skills) if skill not in skills[:i]]
    rest = [i for i in range(len(groups)) if i not in first]
    return [groups[i] for i in [*first, *rest][:GROUPS_PER_STEP]]


def _spread(group: list[dict]) -> float:
    rewards = [record["reward"] for record in group if record["reward"] is not None]
    return max(rewards) - min(rewards) if rewards else -1.0
