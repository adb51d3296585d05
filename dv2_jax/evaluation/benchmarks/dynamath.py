"""DynaMath: 501 templates of problems, each in ten variants (arXiv 2411.00836)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, columns_of, group_rows, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.judge_prompts import shorten_answer
from dv2_jax.evaluation.scorers.short_answer import (
    FLOAT,
    MULTIPLE_CHOICE,
    json_part,
    parse_short_answer,
    read_short_answer,
    short_answer_equal,
)

_GUIDE = """
## Answer Instruction Please provide an answer to the question outlined above. Your response should adhere \
to the following JSON format, which includes two keys: 'solution' and 'short answer'. The 'solution' key can contain \
detailed steps needed to solve the question, and the 'short answer' key should provide a concise response. {form}

Example of expected JSON response format:

{{
    "solution": "[Detailed step-by-step explanation]",
    "short answer": "[Concise Answer]"
}}"""
_FORMS = {
    # As published, with its misprint.
    MULTIPLE_CHOICE: "Provide the corresponing choice option "  # codespell:ignore corresponing
    "in the 'short answer' key, such as 'A', 'B', 'C', or 'D'.",
    FLOAT: "Format the answer as a three-digit floating-point number and provide it in the 'short answer' key.",
}
_OTHER_FORM = "Float numbers in the answer should be formatted as three-digit floating-point numbers."


@register_benchmark
class DynaMath(KitBenchmark):
    """DynaMath: `overall` is the mean over all variants, `worst case` the share of templates with all variants right.

    A template of which a variant failed counts in the worst case only if another variant is wrong.
    """

    name = "dynamath"
    title = "DynaMath"
    files = ("DynaMath.tsv",)
    columns = ("question", "answer", "qid", "answer_type", "subject", "knowledge_level")
    group_column = "subject"
    data_source = "reason"
    published_rows = 5_010
    uses_judge = True
    protocol = "short answer in a JSON reply, else extracted by a judge; floats within 0.001 (ms-vlmeval 0.0.20)"

    def prompt(self, question: Question) -> str:
        form = _FORMS.get(columns_of(question)["answer_type"], _OTHER_FORM)
        return f"## Question\n {question.text}{_GUIDE.format(form=form)}"

    def cluster(self, question: Question) -> str:
        return f"template {columns_of(question)['qid']}"

    def details(self, question: Question) -> dict[str, Any]:
        return {"level": columns_of(question)["knowledge_level"]}

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._read(question, answer.prediction, answer)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the released evaluation: the same rule, on the entire response where it has no `<answer>`."""
        return self._read(question, prediction_deepeyesv2(answer), answer)

    def _read(self, question: Question, prediction: str, answer: BenchmarkAnswer) -> Score:
        answer_type, part = columns_of(question)["answer_type"], json_part(prediction)
        short = read_short_answer(part, answer_type)
        if short is None:
            if answer.judge is None:
                return self.needs_judge(question, "the reply has no short answer")
            short = parse_short_answer(answer.judge.ask(shorten_answer(part, answer_type)).strip(), answer_type)
        is_right = short_answer_equal(short, question.answer, answer_type, part)
        return self.scored(question, is_right, extracted=None if short is None else str(short))

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        subjects = group_rows(scores, lambda score: [f"subject {score.group}"])
        levels = group_rows(scores, lambda score: [f"level {score.details['level']}"])
        worst = ResultRow.from_scores("worst case", worst_cases(scores))
        return [*subjects, *levels, worst, ResultRow.from_scores(OVERALL_ROW, scores)]


def worst_cases(scores: Sequence[Score]) -> list[Score]:
    """Returns one score per template and sample: 1 if all variants are right, failed if that is not known."""
    templates: dict[tuple[str, int], list[float | None]] = {}
    for score in scores:
        templates.setdefault((score.cluster, score.sample), []).append(score.value)
    found = []
    for (template, sample), values in templates.items():
        is_known = None not in values or any(value == 0 for value in values)
        failure = "" if is_known else "a variant has no score"
        value = float(all(values)) if is_known else None
        found.append(Score(value, failure, question_id=template, sample=sample))
    return found
