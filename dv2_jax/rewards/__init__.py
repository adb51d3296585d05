"""Rewards: the released arithmetic over a verdict by rules or by a judge.

``reward`` scores one trajectory; ``assign`` scores many, in place, and keeps the infrastructure's failures out
of the loss.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.rewards.judge import Judge, JudgeUnavailable
from dv2_jax.rewards.matching import equivalent
from dv2_jax.rewards.rules import RewardParts, final_answer, score, too_long, well_formed

__all__ = [
    "Judge", "JudgeUnavailable", "RewardParts", "answer_ok", "assign", "equivalent", "final_answer", "reward",
    "score", "well_formed",
]  # fmt: skip

_JUDGE_THREADS = 32  # as released
_log = logging.getLogger(__name__)


@functools.cache
def _judge(base_url: str, model: str) -> Judge:
    return Judge(base_url, model)


def answer_ok(trajectory: Trajectory, text: str, config: RewardConfig) -> bool:
    """Whether the final answer is right: by the rules, or else by the judge where one is configured.

    The rules are strict, so what they accept needs no judge; numbers they reject are wrong, too. A missing
    perception or search answer is put to the judge as "None", as released.

    Raises:
        JudgeUnavailable: when the judge cannot be reached.
    """
    question, prediction = trajectory.question, final_answer(text)
    if too_long(prediction, question.data_source, config):
        return False
    if equivalent(prediction, question.answer, question.verifier, question.meta):
        return True
    if not config.judge_base_url or question.verifier == "number":
        return False
    judge = _judge(config.judge_base_url, config.judge_model)
    if question.data_source == "reason":
        return bool(prediction) and judge.same_mathematics(question.text, question.answer, prediction)
    return judge.consistent(question.text, question.answer, str(prediction))


def reward(trajectory: Trajectory, tokenizer: Tokenizer, config: RewardConfig) -> RewardParts:
    """The reward of a finished trajectory.

    Raises:
        JudgeUnavailable: when the judge cannot be reached.
        ValueError: for a trajectory that the infrastructure lost; it has no reward.
    """
    if trajectory.finish is Finish.LOST:
        raise ValueError(f"trajectory {trajectory.id!r} was lost; it has no reward")
    text = trajectory.response_text(tokenizer)
    return score(text, answer_ok(trajectory, text, config), trajectory.question.data_source, config)


def assign(trajectories: Iterable[Trajectory], tokenizer: Tokenizer, config: RewardConfig) -> None:
    """Fills ``reward`` and ``reward_parts`` of every trajectory that was not lost.

    Where the judge stays silent the trajectory is ``dropped``: no verdict is not a wrong answer.
    """

    def fill(trajectory: Trajectory) -> None:
        try:
            parts = reward(trajectory, tokenizer, config)
        except JudgeUnavailable as error:
            _log.warning("trajectory %s dropped: %s", trajectory.id, error)
            trajectory.dropped = True
            return
        trajectory.reward, trajectory.reward_parts = parts.total, parts.to_dict()

    kept = [trajectory for trajectory in trajectories if trajectory.finish is not Finish.LOST]
    if not config.judge_base_url:
        for trajectory in kept:
            fill(trajectory)
        return
    with ThreadPoolExecutor(_JUDGE_THREADS) as pool:
        list(pool.map(fill, kept))
