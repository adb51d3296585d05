"""MathVista: mathematics in figures, charts and photographs (arXiv 2310.02255), the part `testmini`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.extraction_benchmark import ExtractionBenchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import columns_of, group_rows
from dv2_jax.evaluation.scorers.choice_inference import read_option
from dv2_jax.evaluation.scorers.literal_lists import lettered, read_list
from dv2_jax.evaluation.scorers.typed_equality import MULTI_CHOICE, choice_equal, read_typed, typed_equal


@register_benchmark
class MathVista(ExtractionBenchmark):
    """MathVista: options by letter or text, integers and decimals exactly; rows per task and skill.

    An answer that is a list is never right, as in VLMEvalKit, and so needs no judge.
    """

    name = "mathvista"
    title = "MathVista"
    files = ("MathVista_MINI.tsv",)
    columns = ("question", "answer", "question_type", "answer_type", "choices", "answer_option", "task", "skills")
    group_column = "task"
    published_rows = 1_000
    protocol = "equality by answer type after extraction by a judge (ms-vlmeval 0.0.20); bare answers need no judge"

    def bare_answer(self, question: Question, prediction: str) -> str | None:
        columns = columns_of(question)
        if columns["question_type"] == MULTI_CHOICE:
            return read_option(prediction, _choices(question))
        answer_type = columns["answer_type"]
        if answer_type not in ("integer", "float") or read_typed(prediction, answer_type) is not None:
            return prediction
        return None

    def compare(self, question: Question, extracted: str) -> bool:
        columns = columns_of(question)
        if columns["question_type"] == MULTI_CHOICE:
            return bool(choice_equal(extracted, columns["answer_option"], _choices(question)))
        return typed_equal(extracted, question.answer, columns["answer_type"])

    def details(self, question: Question) -> dict[str, Any]:
        skills = columns_of(question)["skills"]
        return {"skills": read_list(skills) or [skills]}

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        tasks = group_rows(scores, lambda score: [score.group])
        skills = group_rows(scores, lambda score: score.details["skills"])
        return [*tasks, *skills, ResultRow.from_scores(OVERALL_ROW, scores)]


def _choices(question: Question) -> dict[str, str]:
    return lettered(read_list(columns_of(question)["choices"]) or [])
