"""Rewards: a verdict on each answer (rules, then a judge), and the weighted sum of registered reward terms.

`trajectory_reward` scores one trajectory; `compute_rewards` scores many, in place, and keeps failures of the
infrastructure out of the loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.rewards.judge import Judge, JudgeOutage, JudgeUnavailable
from dv2_jax.rewards.matching import answers_match, answers_match_batch
from dv2_jax.rewards.reward_registry import FinalAnswer, Response, reward, verdict_source
from dv2_jax.rewards.rules import RewardParts, check_terms, final_answer, is_well_formed, score_response
from dv2_jax.rewards.verdicts import is_correct, probe_judge, verdict_sources

__all__ = [
    "FinalAnswer", "Judge", "JudgeOutage", "JudgeUnavailable", "Response", "RewardParts", "answers_match",
    "answers_match_batch", "compute_rewards", "final_answer", "is_correct", "is_well_formed", "prepare_rewards",
    "reward", "score_response", "trajectory_reward", "verdict_source",
]  # fmt: skip

_THREADS = 32  # as released
_log = logging.getLogger(__name__)


def prepare_rewards(config: RewardConfig) -> None:
    """Checks at the start of a run that all reward terms and verdict sources exist and that the judge answers.

    Raises:
        ConfigError: one does not; the message names the key and the fix.
    """
    check_terms(config)
    verdict_sources(config)
    probe_judge(config)


def trajectory_reward(trajectory: Trajectory, tokenizer: Tokenizer, config: RewardConfig) -> RewardParts:
    """Returns the reward of a finished trajectory.

    Raises:
        JudgeUnavailable: the judge gave no verdict.
        ValueError: the infrastructure lost the trajectory, so it has no reward; or its reference is unusable.
    """
    if trajectory.finish is Finish.LOST:
        raise ValueError(f"trajectory {trajectory.id!r} was lost; it has no reward")
    text = trajectory.response_text(tokenizer)
    correct = is_correct(trajectory.question, text, config)
    return score_response(text, correct, trajectory.question.data_source, config, trajectory)


def compute_rewards(
    trajectories: Iterable[Trajectory],
    tokenizer: Tokenizer,
    config: RewardConfig,
    verdict: Callable[[Trajectory, str], bool] | None = None,
) -> None:
    """Sets `reward` and `reward_parts` of every trajectory that was not lost, judging them in parallel.

    A trajectory without a verdict (the judge failed, or the question's reference is unusable) is `dropped` with a
    warning: no verdict is not a wrong answer.

    Args:
        verdict: decides on a trajectory and its response text, by default with `config.verdicts`. It raises
            JudgeUnavailable or ValueError where it cannot decide.

    Raises:
        JudgeOutage: the judge has given no verdict for `config.judge_outage_s`.
    """
    check_terms(config)
    verdict_sources(config)

    def score(trajectory: Trajectory) -> None:
        text = trajectory.response_text(tokenizer)
        question = trajectory.question
        try:
            correct = is_correct(question, text, config) if verdict is None else verdict(trajectory, text)
        except (JudgeUnavailable, ValueError) as error:
            _log.warning("trajectory %s of question %s dropped: %s", trajectory.id, question.id, error)
            trajectory.dropped = True
            trajectory.row_error = "" if isinstance(error, JudgeUnavailable) else str(error)
            return
        parts = score_response(text, correct, question.data_source, config, trajectory)
        trajectory.reward, trajectory.reward_parts = parts.total, parts.to_dict()

    kept = [trajectory for trajectory in trajectories if trajectory.finish is not Finish.LOST]
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rewards")
    try:
        for _ in threads.map(score, kept):
            pass
    finally:
        threads.shutdown(cancel_futures=True)
