"""SimpleVQA as VLMEvalKit has it: the full bilingual set with a three-way judge (arXiv 2502.13059)."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import JUDGE, OVERALL_ROW, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, group_rows
from dv2_jax.evaluation.scorers.judge_prompts import three_way
from dv2_jax.evaluation.scorers.three_way_verdict import CORRECT, INCORRECT, NOT_ATTEMPTED, f1, read_three_way


@register_benchmark
class SimpleVQAKit(KitBenchmark):
    """SimpleVQA, VLMEvalKit's protocol; the 1,013 English questions of MMSearch-R1 are the benchmark `simplevqa`.

    `overall` is the share of correct answers; F1 is the harmonic mean of that and of the accuracy among attempted ones.
    The released DeepEyesV2 evaluation does not have it.
    """

    name = "simplevqa_kit"
    title = "SimpleVQA (VLMEvalKit)"
    files = ("SimpleVQA.tsv",)
    data_source = "search"
    requires = (JUDGE,)
    published_rows = 2_025
    protocol = "a judge says correct, incorrect or not attempted, at temperature 0 (VLMEvalKit: gpt-4o, temperature 1)"

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        if answer.judge is None:
            return self.needs_judge(question, "every answer is judged by one")
        reply = answer.judge.ask(three_way(question.text, [question.answer], answer.prediction))
        verdict = read_three_way(reply)
        if verdict is None:
            return self.undecided(question, reply)
        return self.scored(question, verdict == CORRECT, details={"verdict": verdict})

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        judged = [score for score in scores if score.value is not None]
        rows = [
            ResultRow.from_scores(
                name,
                [
                    Score(float(score.details["verdict"] == name), cluster=score.cluster, question_id=score.question_id)
                    for score in judged
                ],
            )
            for name in (INCORRECT, NOT_ATTEMPTED)
        ]
        attempted = [score for score in judged if score.details["verdict"] != NOT_ATTEMPTED]
        rows.append(ResultRow.from_scores("correct of attempted", attempted))
        rows.append(ResultRow.from_statistic("F1", scores, _f1))
        groups = group_rows(scores, lambda score: [score.group]) if len({score.group for score in scores}) > 1 else []
        return [*groups, *rows, ResultRow.from_scores(OVERALL_ROW, scores)]


def _f1(scores: Sequence[Score]) -> float | None:
    verdicts = [score.details["verdict"] for score in scores if score.value is not None]
    return f1(verdicts) if verdicts else None
