"""A benchmark in one file: answers to sums, scored by the share of expected digits that they contain."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkAnswer, ResultRow, Score
from dv2_jax.rollout.question_sources import ReadRows

SUMS = {"two": 10 + 11, "three": 20 + 30 + 21, "broken": 1, "silent": 2}


class DigitsBenchmark(Benchmark):
    """Has partial credit, an answer that cannot be scored, a scorer that raises, and a table of its own."""

    name = "digits"
    source = "made here"

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        return [
            Question(f"digits-{name}", "plain", "reason", f"{name}: name a number.", (), str(answer))
            for name, answer in SUMS.items()
        ]

    def row_count(self, config: Config) -> int:
        return len(SUMS)

    def prompt(self, question: Question) -> str:
        return f"{question.text} Reply with digits only."

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        kind = question.text.partition(":")[0]
        if question.text.endswith("only."):
            raise AssertionError("the question is the prompt")
        if kind == "broken":
            raise KeyError("no such digit")
        if kind == "silent":
            return Score(None, "not to be scored")
        return Score(digit_share(answer.final, question.answer), group=kind, details={"length": len(question.answer)})

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        scored = [score for score in scores if score.value is not None]
        worst = min(scored, key=lambda score: score.value)
        total = sum(score.details["length"] for score in scored)
        return [
            ResultRow(f"worst: {worst.group}", worst.value, None, 1, 0),
            ResultRow("digits asked", total / 10, (0.0, 1.0), total, 0),
            ResultRow.from_scores("overall", scores),
        ]


def digit_share(final: str | None, reference: str) -> float:
    return sum(digit in (final or "") for digit in reference) / len(reference)


class NoTable(DigitsBenchmark):
    """A benchmark whose aggregation is wrong."""

    name = "no-table"

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        return {}["overall"]
