"""MathVerse: the same problems in five versions, from text to image alone (arXiv 2403.14624)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import JUDGE, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import (
    KitBenchmark,
    columns_of,
    group_rows,
    overall_of_groups,
    prediction_deepeyesv2,
)
from dv2_jax.evaluation.scorers.judge_prompts import compare_math_answers, extract_math_answer


@register_benchmark
class MathVerse(KitBenchmark):
    """MathVerse: a judge extracts the answer, and compares it where it is not the reference itself.

    `overall` is the plain mean of the versions, as in the released evaluation; VLMEvalKit gives the versions alone. The
    versions of a problem share a cluster: its `problem_index`, or without that column the question for the judge.
    """

    name = "mathverse"
    title = "MathVerse"
    files = ("MathVerse_MINI.tsv", "MathVerse_MINIV.tsv")
    columns = ("question", "answer", "problem_version", "question_for_eval")
    group_column = "problem_version"
    data_source = "reason"
    requires = (JUDGE,)
    published_rows = 3_940
    protocol = "a judge extracts, then compares (ms-vlmeval 0.0.20); mean of the five versions"

    def cluster(self, question: Question) -> str:
        columns = columns_of(question)
        if problem := columns.get("problem_index"):
            return f"problem {problem}"
        return hashlib.sha256(columns["question_for_eval"].encode()).hexdigest()[:16]

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._judged(question, answer.prediction, answer)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the released evaluation: the same steps, on the entire response where it has no `<answer>`."""
        return self._judged(question, prediction_deepeyesv2(answer), answer)

    def _judged(self, question: Question, prediction: str, answer: BenchmarkAnswer) -> Score:
        if answer.judge is None:
            return self.needs_judge(question, "every answer is extracted and compared by one")
        extracted = answer.judge.ask(extract_math_answer(prediction)).strip()
        if extracted == question.answer.strip():
            return self.scored(question, True, extracted=extracted)
        asked = compare_math_answers(columns_of(question)["question_for_eval"], question.answer, extracted)
        reply = answer.judge.ask(asked).strip()
        if reply not in ("0", "1"):
            return self.undecided(question, reply)
        return self.scored(question, reply == "1", extracted=extracted)

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        return [*group_rows(scores, _version), overall_of_groups(scores, lambda score: score.group)]


def _version(score: Score) -> list[str]:
    return [score.group]
