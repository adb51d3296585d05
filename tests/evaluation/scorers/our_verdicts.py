"""Scores the cases of `parity_cases` with our benchmarks, in the terms of `kit_verdicts`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dv2_jax.config import RewardConfig
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark
from dv2_jax.evaluation.scorers.three_way_verdict import CORRECT, INCORRECT, NOT_ATTEMPTED

_OUTCOMES = {CORRECT: "is_correct", INCORRECT: "is_incorrect", NOT_ATTEMPTED: "is_not_attempted"}


class GivenReplies:
    """A judge that gives prepared replies in turn, the last one from then on, and keeps what it was asked."""

    def __init__(self, *replies: str):
        self.replies = list(replies)
        self.asked: list[Any] = []
        self.sampling: list[dict[str, Any]] = []

    def ask(self, messages, **sampling) -> str:
        self.asked.append(messages)
        self.sampling.append(sampling)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def verdict(self, question, references, answer, rubric="") -> bool | None:
        self.asked.append((question, tuple(references), answer, rubric))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return {"yes": True, "no": False}.get(reply)


def benchmark_of(name: str) -> KitBenchmark:
    return BENCHMARKS.get(name)()


def question_of(benchmark: KitBenchmark, columns: dict[str, str], id_: str = "0"):
    return benchmark.question(id_, columns, ())


def answer_of(prediction: str, judge: GivenReplies | None = None, last_turn: str = "") -> BenchmarkAnswer:
    return BenchmarkAnswer(prediction, prediction, RewardConfig(), judge=judge, last_turn=last_turn)


def score_of(case: dict) -> Score:
    """Returns the official score of a case."""
    benchmark = benchmark_of(case["rule"])
    judge = GivenReplies(*case.get("replies", [case.get("reply", "")]))
    return benchmark.score(question_of(benchmark, case["columns"]), answer_of(case["prediction"], judge))


def table_of(case: dict) -> dict[str, float]:
    """Returns the values of a result table by name."""
    benchmark = benchmark_of(case["benchmark"])
    questions = [question_of(benchmark, row, str(number)) for number, row in enumerate(case["rows"])]
    scores = [
        replace(benchmark.scored(question, hit), question_id=question.id)
        for question, hit in zip(questions, case["hits"], strict=True)
    ]
    return {row.name: round(row.value, 9) for row in benchmark.aggregate(scores) if row.value is not None}


def verdict(case: dict) -> Any:
    """Returns the official verdict on a case: true, false, `undecided`, or what the rule gives in its place."""
    if case["rule"] == "prompt":
        benchmark = benchmark_of(case["benchmark"])
        return benchmark.prompt(question_of(benchmark, case["columns"]))
    if case["rule"] == "table":
        return table_of(case)
    score = score_of(case)
    if score.value is None:
        return score.outcome
    if case["rule"] == "treebench":
        return [score.value == 1, round(score.details["overlap"], 9)]
    if case["rule"] == "charxiv_descriptive":
        return score.value
    if case["rule"] == "simplevqa_kit":
        return _OUTCOMES[score.details["verdict"]]
    return score.value == 1
