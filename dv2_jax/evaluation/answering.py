"""Greedy evaluation with the same engine, prompts and tools as training, aggregated per skill.

Questions are sharded over hosts; every host receives the aggregated result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.summary import EvalResult, SkillResult, summarize
from dv2_jax.parallel import distributed
from dv2_jax.parallel.outage import raise_outage_together
from dv2_jax.rewards import compute_rewards
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler

__all__ = ["EvalResult", "SkillResult", "answer_questions", "evaluate", "roll_out"]


def evaluate(
    questions: Sequence[Question],
    scheduler: RolloutScheduler,
    tokenizer: Tokenizer,
    reward_config: RewardConfig,
    on_progress: Callable[[Trajectory], None] | None = None,
) -> EvalResult:
    """Answers every question once, scores and aggregates the trajectories. Every host calls it with all questions."""
    return summarize(answer_questions(questions, scheduler, tokenizer, reward_config, on_progress))


def answer_questions(
    questions: Sequence[Question],
    scheduler: RolloutScheduler,
    tokenizer: Tokenizer,
    reward_config: RewardConfig,
    on_progress: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Returns one scored trajectory for each question of this host's shard; arguments as in `roll_out`."""
    with raise_outage_together():
        trajectories = roll_out(questions, scheduler, on_progress)
        compute_rewards(trajectories, tokenizer, reward_config)
    return trajectories


def roll_out(
    questions: Sequence[Question],
    scheduler: RolloutScheduler,
    on_progress: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Returns one trajectory for each question of this host's shard, without rewards.

    Args:
        scheduler: greedy (temperature 0), so that the result depends on neither seeds nor the order of the questions.
        on_progress: called with each trajectory as it finishes.

    Raises:
        ValueError: if the scheduler's temperature is not 0.
    """
    temperature = scheduler.sampling.temperature
    if temperature != 0:
        raise ValueError(
            f"sampling.temperature is {temperature}: evaluation is greedy, use a scheduler with temperature 0"
        )
    requests = [RolloutRequest(question, f"eval-{i:06d}", i) for i, question in enumerate(questions)]
    return scheduler.run(distributed.shard_for_process(requests), on_finish=on_progress)
