"""OCRBench: text in images, in ten categories of questions (arXiv 2305.07895)."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, group_rows, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.literal_lists import read_list
from dv2_jax.evaluation.scorers.substring_match import contains_reference

_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)


@register_benchmark
class OCRBench(KitBenchmark):
    """OCRBench: a reference text occurs in the reply. The published score is the number right of 1,000: 882 is 88.2 %."""

    name = "ocrbench"
    title = "OCRBench"
    files = ("OCRBench.tsv",)
    columns = ("question", "answer", "category")
    published_rows = 1_000
    protocol = (
        "a reference occurs in the reply (ms-vlmeval 0.0.20), so that long replies gain; published as right of 1,000"
    )

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._contained(question, answer.prediction)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the released evaluation: the same rule, on the entire response where it has no `<answer>`."""
        return self._contained(question, prediction_deepeyesv2(answer))

    def _contained(self, question: Question, prediction: str) -> Score:
        references = read_list(question.answer)
        if references is None:
            raise ValueError(f"row {question.id}: answer {question.answer[:80]!r} is no list such as ['text']")
        return self.scored(question, contains_reference(prediction, references, question.skill))

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        rows = group_rows(scores, lambda score: ["Text Recognition" if score.group in _RECOGNITION else score.group])
        return [*rows, ResultRow.from_scores(OVERALL_ROW, scores)]
