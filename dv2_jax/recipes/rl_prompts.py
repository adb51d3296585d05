"""The prompts of a run in their order, and the groups of trajectories that are drawn for them.

Which prompts a step draws, and every trajectory's name and random key, follow from places in that order alone. Several
hosts divide the places of a step among them; what a group came to, each of them knows.
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
from dv2_jax.evaluation.summary import Outcome, gather_outcomes
from dv2_jax.parallel import distributed
from dv2_jax.rollout.question_sources import train_questions
from dv2_jax.rollout.scheduler import RolloutRequest


@dataclass(frozen=True)
class Group:
    """The samples of one prompt: what came of each, and the trajectories, each of them None where another host has them."""

    outcomes: tuple[Outcome, ...]
    trajectories: tuple[Trajectory | None, ...]

    @property
    def informative(self) -> bool:
        """Whether the rewards of those that count differ."""
        return len({outcome.reward for outcome in self.outcomes if outcome.loss_tokens}) > 1


def gather_groups(trajectories: Sequence[Trajectory], size: int) -> list[Group]:
    """All hosts' groups by place, from each one's scored trajectories of its share. Every host calls it."""
    own = [tuple(trajectories[first : first + size]) for first in range(0, len(trajectories), size)]
    found = gather_outcomes(own)
    held = dict(zip(distributed.share(range(len(found))), own, strict=True))
    return [Group(tuple(outcomes), held.get(place, (None,) * size)) for place, outcomes in enumerate(found)]


def group_requests(questions: Mapping[int, Question], step: int, group_size: int) -> list[RolloutRequest]:
    """`group_size` requests for every question, group after group; questions by their place in the run's order.

    Names and random keys are functions of the step and of that place, so a step that is done again draws the same.
    """
    names = [
        (question, f"{step:05d}-{place:06d}-{member:02d}")
        for place, question in questions.items()
        for member in range(group_size)
    ]
    return [RolloutRequest(question, name, trajectory_key(name)) for question, name in names]


def trajectory_key(name: str) -> int:
    """32 bits that name a trajectory's random numbers within a run."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


class Prompts:
    """This host's share of the training questions, by place in the run's order; made while the device works."""

    def __init__(self, config: Config):
        self._questions = train_questions(config.task)
        self._order = loader.shuffled(len(self._questions), config.run.seed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._made: dict[tuple[int, int], Future] = {}

    def ahead(self, first: int, count: int) -> None:
        """Begin making the questions at places `first` to `first + count`."""
        self._made = {(first, count): self._thread.submit(self._make, first, count)}

    def take(self, first: int, count: int) -> dict[int, Question]:
        made = self._made.pop((first, count), None)
        return made.result() if made is not None else self._make(first, count)

    def _make(self, first: int, count: int) -> dict[int, Question]:
        places = distributed.share(range(first, first + count))
        return {place: self._questions[int(self._order[place])] for place in places}
