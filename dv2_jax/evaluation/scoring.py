"""Scores a benchmark's answers: correct, wrong or failed, each with its reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkAnswer, Score
from dv2_jax.parallel import distributed
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.rewards import JudgeUnavailable, compute_rewards, final_answer

NO_ANSWER = "the tools service lost the trajectory"
NO_VERDICT = "the judge gave no verdict"
_log = logging.getLogger(__name__)


def score_trajectories(
    benchmark: Benchmark,
    questions: Sequence[Question],
    trajectories: Sequence[Trajectory],
    tokenizer: Tokenizer,
    config: RewardConfig,
) -> list[Score]:
    """Returns the score of each trajectory, whose question is the one at the same index.

    Also sets the rewards. Each answer is judged once: the verdict of the benchmark is that of the reward, and
    `reward_parts["accuracy"]` of the trajectory.

    Raises:
        JudgeOutage: the judge has given no verdict for `config.judge_outage_s`.
    """
    asked = {trajectory.id: question for trajectory, question in zip(trajectories, questions, strict=True)}
    scores: dict[str, Score] = {}

    def verdict(trajectory: Trajectory, text: str) -> bool:
        answer = BenchmarkAnswer(text, final_answer(text), config, trajectory)
        score = scores[trajectory.id] = _score(benchmark, asked[trajectory.id], answer)
        if score.value is None:
            raise ValueError(score.failure)  # drops the trajectory: it is neither right nor wrong
        return score.outcome == "correct"

    compute_rewards(trajectories, tokenizer, config, verdict)
    for trajectory in trajectories:
        score = scores.get(trajectory.id) or Score(None, trajectory.row_error or NO_ANSWER)
        question = asked[trajectory.id]
        scores[trajectory.id] = replace(score, question_id=question.id, group=score.group or question.skill)
        if not trajectory.dropped:
            trajectory.reward_parts["accuracy"] = float(score.outcome == "correct")
    return [scores[trajectory.id] for trajectory in trajectories]


def _score(benchmark: Benchmark, question: Question, answer: BenchmarkAnswer) -> Score:
    try:
        score = benchmark.score(question, answer)
    except ServiceOutage:
        raise
    except JudgeUnavailable as error:
        return Score(None, f"{NO_VERDICT}: {error}")
    except Exception as error:  # code from outside: it costs this answer its score, not the run its answers
        _log.debug("%s cannot score question %s", benchmark.name, question.id, exc_info=error)
        return Score(None, f"score: {type(error).__name__}: {error}")
    if not isinstance(score, Score):
        return Score(None, f"score returned {score!r}, not a Score")
    return score


def gather_scores(scores: Sequence[Score]) -> list[Score]:
    """All-gathers the scores of every host's shard of the questions, in the order of the questions. Collective."""
    return [Score(**fields) for fields in distributed.allgather_shards([asdict(score) for score in scores])]
