"""Greedy evaluation: questions through the same engine, protocol and tools as training, then counted per skill.

On several hosts every one answers its share of the questions, and all know the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.summary import EvalResult, SkillResult, summarize
from dv2_jax.parallel import distributed
from dv2_jax.rewards import assign
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler

__all__ = ["EvalResult", "SkillResult", "answer", "evaluate"]


def evaluate(
    questions: Sequence[Question],
    scheduler: RolloutScheduler,
    tokenizer: Tokenizer,
    reward_config: RewardConfig,
    on_progress: Callable[[Trajectory], None] | None = None,
) -> EvalResult:
    """Answer every question once, score the trajectories and count them. Every host calls it, with all questions."""
    return summarize(answer(questions, scheduler, tokenizer, reward_config, on_progress))


def answer(
    questions: Sequence[Question],
    scheduler: RolloutScheduler,
    tokenizer: Tokenizer,
    reward_config: RewardConfig,
    on_progress: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Scored trajectories of this host's share of the questions, one of each.

    ``scheduler`` is a ``RolloutScheduler`` whose sampling is greedy (temperature 0), so that a result depends on
    neither seeds nor the order of the questions. ``on_progress`` is called with each trajectory as it finishes.
    """
    temperature = scheduler.sampling.temperature
    if temperature != 0:
        raise ValueError(f"sampling.temperature is {temperature}: evaluation is greedy, give it a scheduler with 0")
    requests = [RolloutRequest(question, f"eval-{i:06d}", i) for i, question in enumerate(questions)]
    trajectories = scheduler.run(distributed.share(requests), on_finish=on_progress)
    assign(trajectories, tokenizer, reward_config)
    return trajectories
