"""The stored answers and scores of one policy on one benchmark: an index in memory, everything else in the files.

The index has a few hundred bytes per answer. Records, with their token ids and texts, are read back where they are needed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dv2_jax.agent.tool_use import tool_kinds
from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.answerers.answerer import Answer
from dv2_jax.evaluation.record_files import RecordFile, host_file, host_files, read_line, read_lines, write_failure
from dv2_jax.evaluation.records import AnswerInfo, ScoreRecord
from dv2_jax.rewards import final_answer
from dv2_jax.rollout.outcome import TrajectoryStats
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER, TrajectoryWriter, loss_mask
from tools_service.common.status import Status

ANSWERS, SCORES = "trajectories", "scores"  # folders of a run directory


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One answer in the index: its facts without its text, its statistics without a verdict, and its place."""

    info: AnswerInfo
    stats: TrajectoryStats
    path: Path
    offset: int

    def record(self) -> dict[str, Any]:
        """Reads the complete record."""
        return read_line(self.path, self.offset)


class AnswerStore:
    """Appends answers and scores, and finds them by (question id, sample)."""

    def __init__(
        self,
        run_dir: Path,
        name: str,
        tokenizer: Tokenizer | None,
        tools: Sequence[Tool],
        host: int = 0,
    ):
        self.name, self.tokenizer, self.tools = name, tokenizer, tuple(tools)
        self.answers: dict[tuple[str, int], StoredAnswer] = {}
        self.scores: dict[tuple[str, int, str], ScoreRecord] = {}
        self._run_dir = run_dir
        self._records = TrajectoryWriter(run_dir / ANSWERS, tokenizer)
        self._answer_file = RecordFile(host_file(run_dir / ANSWERS, name, host))
        self._score_file = RecordFile(host_file(run_dir / SCORES, name, host))

    def load(self) -> None:
        """Reads the index of the files of all hosts; of several records of an answer, the newest counts."""
        times: dict[tuple[str, int], float] = {}
        for path in host_files(self._run_dir / ANSWERS, self.name):
            for offset, record in read_lines(path):
                if "answer" not in record:
                    continue
                stored = self._index(record, path, offset)
                if record.get("time", 0.0) >= times.get(stored.info.key, 0.0):
                    times[stored.info.key] = record.get("time", 0.0)
                    self.answers[stored.info.key] = stored
        for path in host_files(self._run_dir / SCORES, self.name):
            for _, line in read_lines(path):
                self._keep(ScoreRecord.from_dict(line))

    def add_answer(self, answer: Answer, info: AnswerInfo) -> StoredAnswer:
        """Appends the record of an answer, with its images, and returns its entry of the index.

        Raises:
            StorageFailure: the disk is full or cannot be written.
        """
        try:
            record = self._records.record(answer.trajectory)
        except OSError as error:  # an image
            raise write_failure(Path(error.filename or self._records.directory), error) from error
        record |= {"stage": self.name, "step": None, "time": round(time.time(), 3), "answer": info.to_dict()}
        stored = self._index(record, self._answer_file.path, self._answer_file.append(record))
        self.answers[info.key] = stored
        return stored

    def add_score(self, score: ScoreRecord) -> None:
        """Appends a score; thread-safe.

        Raises:
            StorageFailure: the disk is full or cannot be written.
        """
        self._score_file.append(score.to_dict())
        self._keep(score)

    def trajectory(self, question: Question, record: Mapping[str, Any]) -> Trajectory:
        """Converts a record to a trajectory, without the patches of its images."""
        return trajectory_of_record(record, question, self.tools, self._run_dir / ANSWERS / IMAGE_FOLDER)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._answer_file.close()
        self._score_file.close()

    def _index(self, record: Mapping[str, Any], path: Path, offset: int) -> StoredAnswer:
        info = AnswerInfo.from_dict(record["answer"])
        return StoredAnswer(replace(info, text=""), record_stats(record, info, self.tools), path, offset)

    def _keep(self, score: ScoreRecord) -> None:
        self.scores[score.key] = replace(score, judge=())


def answer_info(
    answer: Answer, benchmark: str, model: str, tools: Sequence[Tool], tokenizer: Tokenizer | None, weights: str = ""
) -> AnswerInfo:
    """Collects the facts of an answer for its record."""
    request, trajectory = answer.request, answer.trajectory
    text = answer.text or ("" if tokenizer is None else trajectory.response_text(tokenizer))
    return AnswerInfo(
        benchmark=benchmark,
        question_id=request.question.id,
        sample=request.sample,
        attempt=request.attempt,
        prompt_digest=request.prompt_digest,
        model=model,
        tools=tuple(tool.name for tool in tools),
        failure=answer.failure,
        final=None if answer.failure else final_answer(text),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds,
        tool_counts=dict(tool_kinds(trajectory.turns, tools)),
        requests=answer.requests,
        text=answer.text,
        weights=weights,
        cached_tokens=answer.cached_tokens,
    )


def record_stats(record: Mapping[str, Any], info: AnswerInfo, tools: Sequence[Tool]) -> TrajectoryStats:
    """Computes the statistics of a record; reward and verdict are those of an answer without a score."""
    executed = {turn["kind"] for turn in record["turns"] if turn["status"]}
    used = {tool.category: False for tool in tools} | {tool.category: True for tool in tools if tool.name in executed}
    return TrajectoryStats(
        skill=record["question"]["skill"],
        dropped=bool(info.failure) or record["dropped"],
        reward=0.0,
        correct=False,
        well_formed=False,
        finish=record["finish"] or "running",
        tool_calls=record["tool_calls"],
        used=used,
        tool_kinds=dict(info.tool_counts),
        tokens=len(record["token_ids"]) or info.prompt_tokens + info.completion_tokens,
        loss_tokens=0 if info.failure or record["dropped"] else info.completion_tokens,
    )


def scored_stats(stats: TrajectoryStats, score: ScoreRecord | None) -> TrajectoryStats:
    """Returns the statistics with the verdict and reward of a score; without a verdict the answer counts as dropped."""
    if stats.dropped or score is None or not score.reward_parts:
        return replace(stats, dropped=True, loss_tokens=0)
    parts = score.reward_parts
    return replace(
        stats, reward=float(score.reward or 0.0), correct=parts["accuracy"] > 0.5, well_formed=parts["format"] > 0
    )


def trajectory_of_record(
    record: Mapping[str, Any], question: Question, tools: Sequence[Tool], images: Path
) -> Trajectory:
    """Converts a stored record to a trajectory, without the patches of its images.

    Args:
        images: folder of the images of the records; one that is missing there is left out.
    """
    sampled = loss_mask(dict(record))
    logprobs, versions = iter(record["logprobs"]), iter(record["versions"])
    turns = [
        TurnRecord(
            turn["text"],
            turn["kind"],
            turn["observation"],
            tuple((images / name).read_bytes() for name in turn["pictures"] if (images / name).is_file()),
            Status(turn["status"]) if turn["status"] else None,
            turn["wall_ms"],
        )
        for turn in record["turns"]
    ]
    pieces = record["segments"]
    return Trajectory(
        record["id"],
        question,
        token_ids=list(record["token_ids"]),
        loss_mask=sampled,
        logprobs=[next(logprobs) if trained else 0.0 for trained in sampled],
        versions=[next(versions) if trained else -1 for trained in sampled],
        turns=turns,
        finish=Finish[record["finish"].upper()] if record["finish"] else None,
        dropped=record["dropped"],
        prompt_tokens=pieces[0]["end"] if pieces and pieces[0]["role"] == "prompt" else 0,
        tools=tuple(tools),
    )
