"""Scored trajectories, counted per skill and overall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.evaluation.statistics import mean, wilson_interval
from dv2_jax.evaluation.tool_use import shares, tool_kinds

OVERALL = "overall"


@dataclass(frozen=True)
class SkillResult:
    """Counts over the questions of one skill. A trajectory that infrastructure failures lost is not in ``n``."""

    n: int
    accuracy: float  # share answered correctly
    accuracy_interval: tuple[float, float]  # Wilson, 95 %
    tool_calls: float  # mean number of calls per trajectory
    tool_rate: float  # share of trajectories with at least one call
    code_rate: float  # ... with at least one code cell
    search_rate: float  # ... with at least one text or image search
    reward: float  # mean total reward
    format_rate: float  # share with a well-formed transcript
    finish: dict[str, int]  # how trajectories ended
    tool_kinds: dict[str, float]  # shares among all calls, see tool_use
    response_tokens: float  # mean sampled tokens
    dropped: int  # lost to infrastructure failures

    def to_dict(self) -> dict:
        return {
            "accuracy": self.accuracy,
            "tool_calls": self.tool_calls,
            "tool_rate": self.tool_rate,
            "reward": self.reward,
            "n": self.n,
            "accuracy_interval": list(self.accuracy_interval),
            "code_rate": self.code_rate,
            "search_rate": self.search_rate,
            "format_rate": self.format_rate,
            "finish": self.finish,
            "tool_kinds": self.tool_kinds,
            "response_tokens": self.response_tokens,
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class EvalResult:
    """Result per skill and overall, and the trajectories it was counted from, in the order of the questions."""

    overall: SkillResult
    skills: dict[str, SkillResult]
    trajectories: tuple[Trajectory, ...]

    def summary(self) -> dict[str, dict]:
        """``{"overall" | skill: {"accuracy", "tool_calls", "tool_rate", "reward", ...}}``, plain JSON types."""
        return {OVERALL: self.overall.to_dict()} | {name: skill.to_dict() for name, skill in self.skills.items()}


def summarise(trajectories: Sequence[Trajectory]) -> EvalResult:
    """Count scored trajectories, overall and per skill (in order of first appearance)."""
    skills: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        skills.setdefault(trajectory.question.skill, []).append(trajectory)
    return EvalResult(
        overall=_count(trajectories),
        skills={name: _count(rows) for name, rows in skills.items()},
        trajectories=tuple(trajectories),
    )


def _count(trajectories: Sequence[Trajectory]) -> SkillResult:
    kept = [trajectory for trajectory in trajectories if not trajectory.dropped]
    kinds = [tool_kinds(trajectory.turns) for trajectory in kept]
    correct = [float(trajectory.reward_parts["accuracy"] > 0.5) for trajectory in kept]
    return SkillResult(
        n=len(kept),
        accuracy=mean(correct),
        accuracy_interval=wilson_interval(sum(correct), len(correct)),
        tool_calls=mean([float(trajectory.tool_calls) for trajectory in kept]),
        tool_rate=mean([float(trajectory.tool_calls > 0) for trajectory in kept]),
        code_rate=mean([float(trajectory.used_code) for trajectory in kept]),
        search_rate=mean([float(trajectory.used_search) for trajectory in kept]),
        reward=mean([float(trajectory.reward) for trajectory in kept]),
        format_rate=mean([float(trajectory.reward_parts["format"] > 0) for trajectory in kept]),
        finish=dict(Counter(trajectory.finish.name.lower() for trajectory in kept)),
        tool_kinds=shares(sum(kinds, Counter())),
        response_tokens=mean([float(trajectory.sampled_tokens) for trajectory in kept]),
        dropped=len(trajectories) - len(kept),
    )
