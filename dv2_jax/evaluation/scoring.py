"""Scores answers in threads while others are being answered: correct, wrong, failed or undecided, each with its reason."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config, ConfigError, RewardConfig, RunFailure
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.benchmarks.benchmark import AnswerJudge, Benchmark, BenchmarkAnswer, Score
from dv2_jax.evaluation.records import AnswerInfo, JudgeReply, ScoreRecord
from dv2_jax.rewards import JudgeUnavailable, final_answer, score_response
from dv2_jax.rewards.verdicts import judge_client

THREADS = 32  # as in `rewards`
WAITING = 64  # answers that may wait for their scores before the next one is taken
NO_VERDICT = "the judge gave no verdict"
NO_READABLE_VERDICT = "the judge's reply has no verdict"
SCORERS: dict[str, Callable[[Benchmark], Callable[[Question, BenchmarkAnswer], Score]]] = {
    "official": lambda benchmark: benchmark.score,
    "deepeyesv2": lambda benchmark: benchmark.score_deepeyesv2,
}
_BASIS_FREE = ("judge_base_url", "judge_model", "judge_outage_s")  # the name of the scorer has the judge's model
_log = logging.getLogger(__name__)


class RecordingJudge(AnswerJudge, Protocol):
    """A judge of one answer that keeps its replies."""

    @property
    def replies(self) -> Sequence[JudgeReply]: ...


def check_scorers(config: Config) -> None:
    """Raises ConfigError if a scorer of `eval.scorers` is unknown or named twice, or there is none."""
    names = config.eval.scorers
    if not names or len(set(names)) != len(names) or set(names) - SCORERS.keys():
        known = " and ".join(SCORERS)
        raise ConfigError(f"eval.scorers = {','.join(names) or 'empty'}: use one or more of {known}, each once")


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer as scorers see it: its text, its trajectory, and the question as it was loaded."""

    question: Question
    info: AnswerInfo
    text: str
    trajectory: Trajectory


class AnswerScorer:
    """Scores the answers of one benchmark by the scorers of `eval.scorers`, and hands each score to `on_score`.

    Args:
        on_score: stores a score; called in threads.
        make_judge: makes the judge of one answer; None: there is no judge.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        config: Config,
        tokenizer: Tokenizer | None,
        on_score: Callable[[ScoreRecord], None],
        make_judge: Callable[[Question], RecordingJudge] | None = None,
    ):
        self.benchmark, self.config, self.tokenizer = benchmark, config.reward, tokenizer
        self.names = {name: scorer_name(name, config) for name in config.eval.scorers}
        self._on_score, self._make_judge = on_score, make_judge
        self._rubric = config.eval.judge_rubric
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="scores")
        self._room = threading.Semaphore(WAITING)
        self._open: set[Future] = set()

    def missing(self, info: AnswerInfo, scores: Mapping[tuple[str, int, str], ScoreRecord]) -> list[str]:
        """Returns the scorers whose stored score of an answer is absent, failed, or of another answer or other settings."""
        if info.failure:
            return []
        found = {name: scores.get((*info.key, full)) for name, full in self.names.items()}
        return [
            name
            for name, record in found.items()
            if record is None or record.basis != self.basis(info) or record.score.outcome == "failed"
        ]

    def basis(self, info: AnswerInfo) -> str:
        """Returns the digest of an answer and of the settings that its score depends on."""
        return score_basis(info, self.config)

    def submit(self, answer: ScoredAnswer, names: Sequence[str]) -> None:
        """Scores an answer by some scorers in a thread; waits while `WAITING` answers have no score yet.

        Raises:
            ServiceOutage: the judge has given no verdict for `reward.judge_outage_s`.
            RunFailure: a score cannot be stored.
        """
        self._room.acquire()
        self._collect()
        future = self._threads.submit(self._score_all, answer, names)
        future.add_done_callback(lambda _: self._room.release())
        self._open.add(future)

    def finish(self) -> None:
        """Waits until every submitted answer has its scores; raises as `submit`."""
        wait(self._open)
        self._collect()

    def close(self) -> None:
        """Ends the threads; scores that have not begun are not computed."""
        self._threads.shutdown(cancel_futures=True)

    def _collect(self) -> None:
        done = {future for future in self._open if future.done()}
        self._open -= done
        for future in done:
            future.result()

    def _score_all(self, answer: ScoredAnswer, names: Sequence[str]) -> None:
        for name in names:
            self._on_score(self.score(answer, name))

    def score(self, answer: ScoredAnswer, name: str) -> ScoreRecord:
        """Returns the score of an answer that has not failed; the first scorer also computes the reward."""
        question, info, trajectory = answer.question, answer.info, answer.trajectory
        judge = None if self._make_judge is None else self._make_judge(question)
        seen = BenchmarkAnswer(
            answer.text,
            final_answer(answer.text),
            self.config,
            trajectory,
            judge,
            trajectory.turns[-1].text if trajectory.turns else "",
        )
        score = _score(self.benchmark, SCORERS[name](self.benchmark), question, seen)
        if score.is_undecided and judge is not None and judge.replies:
            score = replace(score, failure=f"{NO_READABLE_VERDICT}: {judge.replies[-1].reply[:200]}")
        reward, parts = None, None
        if name == next(iter(self.names)):
            reward, parts = None, {}
            if score.value is not None:
                score, reward, parts = self._reward(answer, score)
        return ScoreRecord(
            self.benchmark.name,
            question.id,
            info.sample,
            info.attempt,
            self.names[name],
            replace(score, question_id=question.id, sample=info.sample, group=score.group or question.skill),
            tuple(judge.replies) if judge is not None else (),
            self.basis(info),
            reward,
            parts,
        )

    def _reward(self, answer: ScoredAnswer, score: Score) -> tuple[Score, float | None, dict[str, Any]]:
        correct = score.outcome == "correct"
        source = answer.question.data_source
        try:
            parts = score_response(answer.text, correct, source, self.config, answer.trajectory)
        except (RunFailure, ConfigError):
            raise
        except Exception as error:  # a reward term from outside: it costs this answer, not the run
            return Score(None, f"reward: {type(error).__name__}: {error}"), None, {}
        return score, parts.total, parts.to_dict() | {"accuracy": float(correct)}


def _score(
    benchmark: Benchmark,
    scorer: Callable[[Question, BenchmarkAnswer], Score],
    question: Question,
    seen: BenchmarkAnswer,
) -> Score:
    try:
        score = scorer(question, seen)
    except RunFailure:  # among them an outage of the judge
        raise
    except JudgeUnavailable as error:
        return Score(None, f"{NO_VERDICT}: {error}")
    except Exception as error:  # code from outside: it costs this answer its score, not the run its answers
        _log.debug("%s cannot score question %s", benchmark.name, question.id, exc_info=error)
        return Score(None, f"score: {type(error).__name__}: {error}")
    if not isinstance(score, Score):
        return Score(None, f"score returned {score!r}, not a Score")
    return score


def score_basis(info: AnswerInfo, config: RewardConfig) -> str:
    """Returns the digest of an answer and of the settings that its score depends on, as `ScoreRecord.basis` has it."""
    settings = {key: value for key, value in asdict(config).items() if key not in _BASIS_FREE}
    parts = [info.prompt_digest, info.model, info.weights, info.attempt, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def scorer_name(name: str, config: Config) -> str:
    """Returns a scorer's name in records: with the model and rubric of the judge, if the run has one."""
    if not has_judge(config.reward):
        return name
    return f"{name}+{judge_model(config.reward)}/{config.eval.judge_rubric}"


def has_judge(config: RewardConfig) -> bool:
    """Returns True if the run has a judge."""
    return bool(config.judge_base_url)


def judge_model(config: RewardConfig) -> str:
    """Returns the name of the judge's model: the configured one, or the one that its endpoint has named."""
    client = judge_client(config)
    return config.judge_model or getattr(client, "endpoint", client).model or "judge"
