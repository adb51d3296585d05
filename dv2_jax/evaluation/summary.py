"""Scored trajectories, counted per skill and overall; on several hosts, those of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dv2_jax.agent.tool_use import shares, tool_kinds
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.evaluation.statistics import mean, wilson_interval
from dv2_jax.parallel import distributed
from dv2_jax.rl.batch import loss_tokens

OVERALL = "overall"


@dataclass(frozen=True)
class Outcome:
    """What is counted of a scored trajectory, and what a step's advantages follow from: little enough for all hosts."""

    skill: str
    dropped: bool  # an infrastructure failure lost it
    reward: float  # 0 where there is none
    correct: bool
    well_formed: bool
    finish: str
    tool_calls: int
    used_code: bool
    used_search: bool
    tool_kinds: dict[str, int]
    tokens: int
    loss_tokens: int  # see `rl.batch.loss_tokens`

    @classmethod
    def of(cls, trajectory: Trajectory) -> Outcome:
        kept, parts = not trajectory.dropped, trajectory.reward_parts
        return cls(
            skill=trajectory.question.skill,
            dropped=trajectory.dropped,
            reward=0.0 if trajectory.reward is None else float(trajectory.reward),
            correct=kept and parts["accuracy"] > 0.5,
            well_formed=kept and parts["format"] > 0,
            finish=trajectory.finish.name.lower(),
            tool_calls=trajectory.tool_calls,
            used_code=trajectory.used_code,
            used_search=trajectory.used_search,
            tool_kinds=dict(tool_kinds(trajectory.turns)),
            tokens=len(trajectory.token_ids),
            loss_tokens=loss_tokens(trajectory),
        )


def gather_outcomes(groups: Sequence[Sequence[Trajectory]]) -> list[list[Outcome]]:
    """The outcomes of all hosts' groups of trajectories, in the order of what `distributed.share` divided."""
    found = distributed.gather_shares([[asdict(Outcome.of(t)) for t in group] for group in groups])
    return [[Outcome(**fields) for fields in group] for group in found]


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
    """Result per skill and overall, and this host's trajectories, in the order of the questions."""

    overall: SkillResult
    skills: dict[str, SkillResult]
    trajectories: tuple[Trajectory, ...]

    def summary(self) -> dict[str, dict]:
        """``{"overall" | skill: {"accuracy", "tool_calls", "tool_rate", "reward", ...}}``, plain JSON types."""
        return {OVERALL: self.overall.to_dict()} | {name: skill.to_dict() for name, skill in self.skills.items()}


def summarize(trajectories: Sequence[Trajectory]) -> EvalResult:
    """Count scored trajectories. Every host passes those of its own share of the questions."""
    outcomes = [outcome for (outcome,) in gather_outcomes([[trajectory] for trajectory in trajectories])]
    return EvalResult(*count(outcomes), tuple(trajectories))


def count(outcomes: Sequence[Outcome]) -> tuple[SkillResult, dict[str, SkillResult]]:
    """Results overall and per skill (in order of first appearance)."""
    skills: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        skills.setdefault(outcome.skill, []).append(outcome)
    return _count(outcomes), {name: _count(rows) for name, rows in skills.items()}


def _count(outcomes: Sequence[Outcome]) -> SkillResult:
    kept = [outcome for outcome in outcomes if not outcome.dropped]
    correct = [float(outcome.correct) for outcome in kept]
    return SkillResult(
        n=len(kept),
        accuracy=mean(correct),
        accuracy_interval=wilson_interval(sum(correct), len(correct)),
        tool_calls=mean([float(outcome.tool_calls) for outcome in kept]),
        tool_rate=mean([float(outcome.tool_calls > 0) for outcome in kept]),
        code_rate=mean([float(outcome.used_code) for outcome in kept]),
        search_rate=mean([float(outcome.used_search) for outcome in kept]),
        reward=mean([outcome.reward for outcome in kept]),
        format_rate=mean([float(outcome.well_formed) for outcome in kept]),
        finish=dict(Counter(outcome.finish for outcome in kept)),
        tool_kinds=shares(sum((Counter(outcome.tool_kinds) for outcome in kept), Counter())),
        response_tokens=mean([float(outcome.loss_tokens) for outcome in kept]),
        dropped=len(outcomes) - len(kept),
    )
