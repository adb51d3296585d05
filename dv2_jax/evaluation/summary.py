"""Aggregates scored trajectories of all hosts per skill and overall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dv2_jax.agent.tool_use import shares
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.evaluation.statistics import mean, wilson_interval
from dv2_jax.rollout.outcome import TrajectoryStats, gather_trajectory_stats

OVERALL = "overall"


@dataclass(frozen=True)
class SkillResult:
    """Aggregates over the questions of one skill. Dropped trajectories count only in `dropped`."""

    n: int
    accuracy: float  # share answered correctly
    accuracy_interval: tuple[float, float]  # Wilson, 95 %
    tool_calls: float  # mean number of calls per trajectory
    tool_rate: float  # share of trajectories with at least one call
    category_rates: dict[str, float]  # ... with at least one call of a category of tools, such as code or search
    reward: float  # mean total reward
    format_rate: float  # share with a well-formed transcript
    finish: dict[str, int]  # number of trajectories per finish reason
    tool_kinds: dict[str, float]  # fractions of all calls, see `agent.tool_use`
    response_tokens: float  # mean sampled tokens
    dropped: int  # lost to infrastructure failures

    def to_dict(self) -> dict:
        """Converts to the JSON types of `summary.json` and `results.json`."""
        return {
            "accuracy": self.accuracy,
            "tool_calls": self.tool_calls,
            "tool_rate": self.tool_rate,
            "reward": self.reward,
            "n": self.n,
            "accuracy_interval": list(self.accuracy_interval),
            **{f"{category}_rate": rate for category, rate in self.category_rates.items()},
            "format_rate": self.format_rate,
            "finish": self.finish,
            "tool_kinds": self.tool_kinds,
            "response_tokens": self.response_tokens,
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class EvalResult:
    """Results per skill and overall, and this host's trajectories in the order of the questions."""

    overall: SkillResult
    skills: dict[str, SkillResult]
    trajectories: tuple[Trajectory, ...]

    def summary(self) -> dict[str, dict]:
        """Returns `{"overall" | skill: {"accuracy", "tool_calls", "tool_rate", "reward", ...}}` in JSON types."""
        return {OVERALL: self.overall.to_dict()} | {name: skill.to_dict() for name, skill in self.skills.items()}


def summarize(trajectories: Sequence[Trajectory]) -> EvalResult:
    """Aggregates scored trajectories. Every host calls it with the trajectories of its shard of the questions."""
    outcomes = [outcome for (outcome,) in gather_trajectory_stats([[trajectory] for trajectory in trajectories])]
    return EvalResult(*aggregate(outcomes), tuple(trajectories))


def aggregate(outcomes: Sequence[TrajectoryStats]) -> tuple[SkillResult, dict[str, SkillResult]]:
    """Aggregates overall and per skill, in order of first appearance."""
    skills: dict[str, list[TrajectoryStats]] = {}
    for outcome in outcomes:
        skills.setdefault(outcome.skill, []).append(outcome)
    return _aggregate(outcomes), {name: _aggregate(rows) for name, rows in skills.items()}


def _aggregate(outcomes: Sequence[TrajectoryStats]) -> SkillResult:
    kept = [outcome for outcome in outcomes if not outcome.dropped]
    correct = [float(outcome.correct) for outcome in kept]
    kinds = _keys([outcome.tool_kinds for outcome in outcomes])
    return SkillResult(
        n=len(kept),
        accuracy=mean(correct),
        accuracy_interval=wilson_interval(sum(correct), len(correct)),
        tool_calls=mean([float(outcome.tool_calls) for outcome in kept]),
        tool_rate=mean([float(outcome.tool_calls > 0) for outcome in kept]),
        category_rates={
            name: mean([float(outcome.used.get(name, False)) for outcome in kept])
            for name in _keys([outcome.used for outcome in outcomes])
        },
        reward=mean([outcome.reward for outcome in kept]),
        format_rate=mean([float(outcome.well_formed) for outcome in kept]),
        finish=dict(Counter(outcome.finish for outcome in kept)),
        tool_kinds=shares({kind: sum(outcome.tool_kinds.get(kind, 0) for outcome in kept) for kind in kinds}),
        response_tokens=mean([float(outcome.loss_tokens) for outcome in kept]),
        dropped=len(outcomes) - len(kept),
    )


def _keys(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Returns the keys of all rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))
