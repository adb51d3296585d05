r"""MATH-Vision: competition mathematics with figures (arXiv 2402.14804)."""

from __future__ import annotations

import re

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.extraction_benchmark import ExtractionBenchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import columns_of
from dv2_jax.evaluation.scorers.arithmetic import compute
from dv2_jax.evaluation.scorers.choice_inference import infer_choice, read_option
from dv2_jax.evaluation.scorers.expression_equality import expressions_equal, without_wrapping
from dv2_jax.evaluation.scorers.literal_lists import lettered, read_list

_BARE = re.compile(r"[-+]?[\d.,/^*() ]*\d[\d.,/^*() ]*")


@register_benchmark
class MathVision(ExtractionBenchmark):
    r"""MATH-Vision: options by letter or text; other answers as text, arithmetic or rational LaTeX, to 1e-6.

    `score_deepeyesv2` removes `\(` and `\)` from the extracted answer, and `\boxed` from the reference.
    """

    name = "mathvision"
    title = "MathVision"
    files = ("MathVision.tsv",)
    columns = ("question", "answer", "choices", "category")
    published_rows = 3_040
    protocol = "equal text, arithmetic or rational LaTeX after extraction by a judge (ms-vlmeval 0.0.20)"

    def bare_answer(self, question: Question, prediction: str) -> str | None:
        if choices := _choices(question):
            return read_option(prediction, choices)
        is_bare = _BARE.fullmatch(prediction.strip()) and compute(prediction.strip()) is not None
        return prediction if is_bare or expressions_equal(prediction, question.answer) else None

    def compare(self, question: Question, extracted: str) -> bool | None:
        return self._equal(question, extracted, question.answer)

    def compare_deepeyesv2(self, question: Question, extracted: str) -> bool | None:
        return self._equal(question, *without_wrapping(extracted, question.answer))

    def _equal(self, question: Question, extracted: str, reference: str) -> bool | None:
        choices = _choices(question)
        return expressions_equal((infer_choice(extracted, choices) or "false") if choices else extracted, reference)


def _choices(question: Question) -> dict[str, str]:
    return lettered(read_list(columns_of(question)["choices"]) or [])
