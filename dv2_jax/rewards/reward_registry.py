"""Registries of reward terms and verdict sources: adding one is a function with a decorator, inside the package or out.

A *reward term* maps a scored response to a number; the reward is the weighted sum of the terms in `reward.terms`. A
*verdict source* decides whether an answer is right, or leaves it to the next source in `reward.verdicts`.

A configuration names a registered function (`accuracy`), or a function by its import path (`my_package.my_module:brevity`),
which needs no registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.config.registry import Registry
from dv2_jax.data.question import DataSource, Question


@dataclass(frozen=True)
class FinalAnswer:
    """An answer to be judged; `prediction` is None where the response holds no `<answer>`."""

    question: Question
    prediction: str | None


@dataclass(frozen=True)
class Response:
    """A response with its verdict, as reward terms see it.

    `text` is everything after the prompt, decoded, observations included. `trajectory` holds turns, tokens and the
    question; it is None where a bare text is scored.
    """

    text: str
    answer: str | None
    is_correct: bool
    data_source: DataSource
    trajectory: Trajectory | None = None

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that the policy could call."""
        return default_tools() if self.trajectory is None else self.trajectory.tools


RewardTerm = Callable[[Response, RewardConfig], float]
VerdictSource = Callable[[FinalAnswer, RewardConfig], "bool | None"]
FunctionT = TypeVar("FunctionT", bound=Callable)
REWARDS: Registry[RewardTerm] = Registry("reward", "reward.terms")
VERDICT_SOURCES: Registry[VerdictSource] = Registry("verdict source", "reward.verdicts")


def reward(name: str) -> Callable[[FunctionT], FunctionT]:
    """Registers `function(response, config) -> float` as the reward term `name`."""
    return REWARDS.register(name)


def verdict_source(name: str) -> Callable[[FunctionT], FunctionT]:
    """Registers `function(answer, config) -> bool | None` as the verdict source `name`; None leaves the decision open.

    Sources run in threads. One that cannot decide because a service is down raises `JudgeUnavailable`.
    """
    return VERDICT_SOURCES.register(name)


def get_reward(name: str) -> RewardTerm:
    """Returns the reward term of that name or import path.

    Raises:
        ConfigError: there is none.
    """
    return REWARDS.get(name)


def get_verdict_source(name: str) -> VerdictSource:
    """Returns the verdict source of that name or import path.

    Raises:
        ConfigError: there is none.
    """
    return VERDICT_SOURCES.get(name)
