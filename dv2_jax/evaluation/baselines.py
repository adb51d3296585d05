"""Baselines: guessing the most common answer, and the same model with its tools refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.statistics import mean
from dv2_jax.rewards.matching import answers_match
from tools_service.client import Status, ToolResult


def guessing_accuracy(questions: Sequence[Question], train: Sequence[Question]) -> dict[str, float]:
    """Returns the accuracy, per skill and `overall`, of always answering with the most common training answer.

    The most common answer is taken among training questions of the same skill and, if `meta["kind"]` is set, of the
    same kind: the best accuracy of a policy that knows the task but ignores the question's text and images.
    """
    answers: dict[tuple, Counter[str]] = {}
    for question in train:
        for key in _keys(question):
            answers.setdefault(key, Counter())[question.answer] += 1
    hits: dict[str, list[float]] = {}
    for question in questions:
        known = next((answers[key] for key in _keys(question) if key in answers), None)
        guess = known.most_common(1)[0][0] if known else ""
        right = bool(guess) and answers_match(guess, question.answer, question.verifier, question.meta)
        hits.setdefault(question.skill, []).append(float(right))
    everything = [hit for row in hits.values() for hit in row]
    return {"overall": mean(everything)} | {skill: mean(row) for skill, row in hits.items()}


def _keys(question: Question) -> list[tuple]:
    kind = question.meta.get("kind")
    by_skill = (question.skill,)
    return [by_skill] if kind is None else [(question.skill, kind), by_skill]


class RefusingTools:
    """A tools client that refuses every request, to evaluate a model without its tools.

    It has the methods and result types of `ToolsClient`; the model reads the refusal as an observation.
    """

    def __init__(self, reason: str = "tools are switched off in this evaluation"):
        self.reason = reason
        self._results: list[ToolResult] = []

    def submit(self, requests: Sequence) -> None:
        self._results += [
            ToolResult(request.request_id, request.kind, Status.REFUSED, message=self.reason) for request in requests
        ]

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        results, self._results = self._results, []
        return results

    def pending(self) -> int:
        return len(self._results)

    def close_sessions(self, ids: Sequence[str]) -> None:
        """Does nothing: no sandbox session has been started."""

    def info(self) -> dict:
        return {"tier": "none", "reason": self.reason}

    def close(self) -> None:
        self._results.clear()
