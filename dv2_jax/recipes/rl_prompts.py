"""The prompts of a run in their shuffled order, and the groups of trajectories sampled for them.

The prompts of a step and every trajectory's name and random key are functions of the prompt index alone. Prompt indices
are sharded over hosts; every host receives every group's results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config
from dv2_jax.data import loader
from dv2_jax.data.question import Question
from dv2_jax.parallel import distributed
from dv2_jax.rollout.outcome import TrajectoryStats, gather_trajectory_stats
from dv2_jax.rollout.question_sources import ReadRows, read_rows, train_questions
from dv2_jax.rollout.scheduler import RolloutRequest


@dataclass(frozen=True)
class Group:
    """The samples of one prompt: statistics of each, and the trajectories (None on the hosts that did not sample them)."""

    stats: tuple[TrajectoryStats, ...]
    trajectories: tuple[Trajectory | None, ...]

    @property
    def has_reward_variance(self) -> bool:
        """True if the rewards of the trajectories in the loss differ."""
        return len({s.reward for s in self.stats if s.loss_tokens}) > 1


def gather_groups(trajectories: Sequence[Trajectory], size: int) -> list[Group]:
    """Exchange the scored trajectories of all hosts; returns all groups by prompt index. Collective."""
    own = [tuple(trajectories[first : first + size]) for first in range(0, len(trajectories), size)]
    gathered = gather_trajectory_stats(own)
    local = dict(zip(distributed.shard_for_process(range(len(gathered))), own, strict=True))
    return [Group(tuple(stats), local.get(index, (None,) * size)) for index, stats in enumerate(gathered)]


def group_requests(questions: Mapping[int, Question], step: int, group_size: int) -> list[RolloutRequest]:
    """Build `group_size` requests for every question, ordered by group. `questions` is keyed by prompt index.

    Names and random keys are functions of the step and the prompt index, so a repeated step samples the same
    trajectories.
    """
    names = [
        (question, f"{step:05d}-{index:06d}-{member:02d}")
        for index, question in questions.items()
        for member in range(group_size)
    ]
    return [RolloutRequest(question, name, trajectory_key(name)) for question, name in names]


def trajectory_key(name: str) -> int:
    """Derive the 32-bit random key of a trajectory from its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


class PromptLoader:
    """Loads this host's shard of the training questions by prompt index, in a background thread."""

    def __init__(self, config: Config, read: ReadRows = read_rows):
        self._questions = train_questions(config.task, read)
        self._order = loader.shuffled(len(self._questions), config.run.seed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._pending: dict[tuple[int, int], Future] = {}

    def prefetch(self, first: int, count: int) -> None:
        """Start loading the questions of indices `first` to `first + count` in the background."""
        self._pending = {(first, count): self._thread.submit(self._load, first, count)}

    def take(self, first: int, count: int) -> dict[int, Question]:
        """Return the questions of this host among indices `first` to `first + count`, keyed by index."""
        pending = self._pending.pop((first, count), None)
        return pending.result() if pending is not None else self._load(first, count)

    def _load(self, first: int, count: int) -> dict[int, Question]:
        indices = distributed.shard_for_process(range(first, first + count))
        return {index: self._questions[int(self._order[index])] for index in indices}
