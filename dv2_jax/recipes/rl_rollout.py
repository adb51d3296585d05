"""The rollout of an RL step: samples and scores groups, with dynamic sampling, and aggregates their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.summary import aggregate
from dv2_jax.parallel.outage import raise_outage_together
from dv2_jax.recipes.rl_prompts import Group, PromptLoader, gather_groups, group_requests
from dv2_jax.recipes.run import Run
from dv2_jax.rollout.outcome import TrajectoryStats
from dv2_jax.rollout.session import RolloutSession

# Sets `reward` and `reward_parts` of the trajectories that were not dropped, in place, like `rewards.compute_rewards`.
RewardFn = Callable[[Sequence[Trajectory], Tokenizer, RewardConfig], None]


@dataclass(frozen=True)
class Rollout:
    """The groups to train on, the statistics of all sampled trajectories, and the index of the next prompt."""

    groups: list[Group]
    sampled: list[TrajectoryStats]
    next_prompt: int


class RolloutCollector:
    """Samples groups of trajectories for the prompts of a step and scores them with `reward_fn`."""

    def __init__(self, run: Run, session: RolloutSession, reward_fn: RewardFn):
        self.run, self.session, self.reward_fn, self.rl = run, session, reward_fn, run.config.rl
        self.questions = PromptLoader(run.config, run.read_rows)

    def prefetch(self, first_prompt: int) -> None:
        """Start loading the questions of a step in the background."""
        self.questions.prefetch(first_prompt, self.rl.prompts_per_step)

    def collect(self, number: int, first_prompt: int) -> Rollout:
        """Sample and score the groups of step `number`, whose first prompt has the index `first_prompt`.

        With dynamic sampling (DAPO), zero-variance groups are replaced by groups of further prompts for up to
        `max_sampling_rounds` rounds; if groups are still missing then, zero-variance groups fill the step.

        Raises:
            ServiceOutage: judge or tools service gave no results for too long on some host; all hosts raise it.
        """
        wanted, next_prompt = self.rl.prompts_per_step, first_prompt
        rounds = self.rl.max_sampling_rounds if self.rl.dynamic_sampling else 1
        with_variance: list[Group] = []
        zero_variance: list[Group] = []
        all_stats: list[TrajectoryStats] = []
        for _ in range(rounds):
            sampled = self._sample(number, next_prompt)
            next_prompt += wanted
            self.prefetch(next_prompt)
            for group in gather_groups(sampled, self.rl.group_size):
                all_stats += group.stats
                if group.has_reward_variance or not self.rl.dynamic_sampling:
                    with_variance.append(group)
                else:
                    zero_variance.append(group)
            if len(with_variance) >= wanted:
                break
        return Rollout((with_variance + zero_variance)[:wanted], all_stats, next_prompt)

    def _sample(self, number: int, first_prompt: int) -> list[Trajectory]:
        """Sample and score the trajectories of this host for one round of prompts."""
        questions = self.questions.take(first_prompt, self.rl.prompts_per_step)
        requests = group_requests(questions, number, self.rl.group_size)
        with raise_outage_together():
            with self.run.display.track(f"step {number}: trajectories", len(requests)) as bar:
                sampled = self.session.scheduler().run(requests, on_finish=lambda _: bar.advance())
            kept = [trajectory for trajectory in sampled if not trajectory.dropped]
            self.reward_fn(kept, self.session.tokenizer, self.run.config.reward)
        return sampled


def count_failed_rows(stats: Sequence[TrajectoryStats], group_size: int) -> int:
    """Count the prompts whose row could not be encoded or graded; `stats` are ordered by group."""
    groups = [stats[first : first + group_size] for first in range(0, len(stats), group_size)]
    return sum(any(member.row_failed for member in group) for group in groups)


def rollout_metrics(stats: Sequence[TrajectoryStats]) -> dict[str, float]:
    """Aggregate the statistics of a step's trajectories into flat metrics, overall and per skill."""
    overall, skills = aggregate(stats)

    def flat(result: Any) -> Iterator[tuple[str, float]]:
        for name, value in result.to_dict().items():
            if isinstance(value, dict):
                yield from ((f"{name}/{key}", number) for key, number in value.items())
            elif isinstance(value, (int, float)):
                yield name, value

    row = dict(flat(overall)) | _spread(stats)
    for skill, result in skills.items():
        row |= {f"{name}/{skill}": getattr(result, name) for name in ("accuracy", "reward", "tool_rate", "tool_calls")}
    return row


def _spread(stats: Sequence[TrajectoryStats]) -> dict[str, float]:
    """Returns the standard deviations of reward, tool calls and sampled tokens over the trajectories that were kept."""
    kept = [trajectory for trajectory in stats if not trajectory.dropped]
    columns = {
        "reward_std": [trajectory.reward for trajectory in kept],
        "tool_calls_std": [trajectory.tool_calls for trajectory in kept],
        "response_tokens_std": [trajectory.loss_tokens for trajectory in kept],
    }
    return {name: float(np.std(values)) if values else 0.0 for name, values in columns.items()}
