"""The stages difficulty and benefit: how often a model solves a question without tools, and with them.

The paper (section 3.3) samples 8 answers of each kind. It keeps the questions that the base model solves at most twice
without tools; those that it solves with tools train RL, and teachers write trajectories for the others.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from dv2_jax.agent.text_trajectory import prompt_messages
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import ConfigError, CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import COLD_START, DROPPED, RL, Decision, Solved
from dv2_jax.curation.models import endpoint_sampling, open_model, response_text, without_tools
from dv2_jax.curation.stage import CurationStage, SingleRequest, StagePlan, register_stage
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answerers.answerer import Answer, AnswerRequest
from dv2_jax.evaluation.answerers.endpoint_answerer import request_key, request_parameters
from dv2_jax.rewards import JudgeUnavailable, is_correct


class SamplingStage(CurationStage):
    """Samples `curate.samples` answers per question and stores for each whether it is correct."""

    with_tools: bool

    def samples(self, settings: CurateConfig) -> int:
        return settings.samples

    def question(self, curation: Curation, row_id: str) -> Question:
        """Returns the question that is asked. A row's own prompt describes tools, and is left out without them."""
        question = curation.store.row(row_id).question
        return question if self.with_tools else replace(question, messages=None)

    def run(self, curation: Curation) -> None:
        missing = list(self._missing(curation))
        if not missing:
            return
        with (
            open_model(curation, with_tools=self.with_tools) as model,
            curation.display.track(f"{self.name}: {model.name}", len(missing), unit="answers") as bar,
            closing(model.answerer.answers(self._requests(curation, missing))) as answers,
        ):
            for answer in answers:
                labels = label_answer(answer, model.name, response_text(answer, model.tokenizer), curation)
                curation.journal(self.name).add(answer.request.question.id, labels, answer.request.sample)
                bar.advance()
                curation.budget.check()

    def is_complete(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig) -> bool:
        settled = [entry for entry in entries if not entry["failure"] or entry["attempt"] >= settings.attempts]
        return len(settled) == self.samples(settings)

    def plan(self, curation: Curation) -> StagePlan:
        missing = list(self._missing(curation))
        return estimate(self.name, len({row for row, _, _ in missing}), len(missing), curation)

    def single_requests(self, curation: Curation) -> Iterator[SingleRequest]:
        settings = curation.settings
        missing = [] if self.with_tools else list(self._missing(curation))  # with tools, answers are conversations
        if missing and not (settings.endpoint and settings.endpoint_model):
            raise ConfigError("--batch-write needs curate.endpoint and curate.endpoint_model, the name in the requests")
        sampling = endpoint_sampling(settings, settings.temperature)
        for request in self._requests(curation, missing):
            messages = prompt_messages(request.question, without_tools(curation.config.agent), ())
            parameters = request_parameters(sampling, request, attempt=request.attempt)
            yield SingleRequest(settings.endpoint_model, messages, parameters, request_key(request))

    def _missing(self, curation: Curation) -> Iterator[tuple[str, int, int]]:
        """Yields (row, sample, attempt) of the answers that are missing, or failed and may be attempted again."""
        journal, settings = curation.journal(self.name), curation.settings
        for row_id in curation.unlabeled_ids(self.name):
            for sample in range(self.samples(settings)):
                entry = journal.get(row_id, sample)
                if entry is None:
                    yield row_id, sample, 1
                elif entry["failure"] and entry["attempt"] < settings.attempts:
                    yield row_id, sample, entry["attempt"] + 1

    def _requests(self, curation: Curation, missing: Sequence[tuple[str, int, int]]) -> Iterator[AnswerRequest]:
        for row_id, sample, attempt in missing:
            seed = answer_seed(curation, self.name, row_id, sample)
            yield AnswerRequest(self.question(curation, row_id), sample, attempt, seed)

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        solved = Solved.count(entries)
        if solved.failed > settings.max_failed_samples:
            return Decision(DROPPED, self.name, f"{solved.failed} of {solved.n + solved.failed} answers failed")
        return self.decide_by_rate(solved, settings, before)

    @abstractmethod
    def decide_by_rate(self, solved: Solved, settings: CurateConfig, before: Decision) -> Decision:
        """Returns the decision on a row of which enough answers have a verdict."""


@register_stage
class Difficulty(SamplingStage):
    """Drops the questions that the model often solves without tools."""

    name = "difficulty"
    with_tools = False

    def decide_by_rate(self, solved: Solved, settings: CurateConfig, before: Decision) -> Decision:
        if solved.correct > settings.max_solved_without_tools:
            return Decision(DROPPED, self.name, f"solved without tools in {solved.correct} of {solved.n} answers")
        return before


@register_stage
class Benefit(SamplingStage):
    """Sends the questions that the model solves with tools to RL, the others to the teachers."""

    name = "benefit"
    with_tools = True

    def applies(self, before: Decision, form: RowForm) -> bool:
        return form == "question"

    def decide_by_rate(self, solved: Solved, settings: CurateConfig, before: Decision) -> Decision:
        return Decision(RL if solved.correct >= settings.min_solved_with_tools else COLD_START)


def answer_seed(curation: Curation, stage: str, row_id: str, sample: int) -> int:
    """Returns the seed (32 bits) of a sample: it depends on its key and on `run.seed` alone."""
    text = f"{curation.config.run.seed}/{stage}/{row_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4])


def label_answer(answer: Answer, model: str, text: str, curation: Curation) -> dict[str, Any]:
    """Returns the labels of one answer; `correct` is None where there is no verdict, and `failure` says why."""
    failure, correct = answer.failure, None
    if not failure:
        try:
            correct = is_correct(answer.request.question, text, curation.config.reward)
        except (JudgeUnavailable, ValueError) as error:
            failure = f"no verdict: {error}"
    return {
        "attempt": answer.request.attempt,
        "correct": correct,
        "failure": failure,
        "finish": "" if answer.trajectory.finish is None else answer.trajectory.finish.value,
        "tool_calls": answer.trajectory.tool_calls,
        "failed_calls": failed_calls(answer.trajectory),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "requests": answer.requests,
        "seconds": answer.seconds,
        "cost": curation.budget.add(model, answer.prompt_tokens, answer.completion_tokens),
        "model": model,
    }


def failed_calls(trajectory: Trajectory) -> int:
    """Returns the number of malformed calls and of calls that did not succeed."""
    executed = [turn.status for turn in trajectory.turns if turn.status is not None]
    malformed = sum(turn.kind == "malformed" for turn in trajectory.turns)
    return malformed + sum(status.name != "OK" for status in executed)


def estimate(stage: str, rows: int, requests: int, curation: Curation) -> StagePlan:
    """Returns the plan of a stage that samples; tokens, time and cost are those of its earlier answers on average."""
    known = [entry for entry in curation.journal(stage).entries() if not entry.get("failure", "no answer")]
    if not known:
        return StagePlan(stage, rows, requests, note="" if not requests else "no earlier answers to estimate from")
    tokens = sum(entry["completion_tokens"] for entry in known) / len(known) * requests
    seconds = sum(entry.get("seconds", 0.0) for entry in known) / len(known) * requests / curation.settings.concurrency
    costs = [entry["cost"] for entry in known if entry["cost"] is not None]
    cost = sum(costs) / len(costs) * requests if costs else None
    return StagePlan(stage, rows, requests, tokens, seconds or None, cost)
