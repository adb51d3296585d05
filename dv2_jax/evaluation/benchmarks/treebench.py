"""TreeBench: small objects and relations in cluttered images, with boxes as evidence (arXiv 2507.07999)."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import choice_prompt, columns_of
from dv2_jax.evaluation.benchmarks.letter_benchmark import LetterBenchmark
from dv2_jax.evaluation.scorers.box_overlap import mean_overlap

OPTIONS = "multi-choice options"


@register_benchmark
class TreeBench(LetterBenchmark):
    """TreeBench. The row `mIoU` is the overlap of the boxes in the response with those of the target objects."""

    name = "treebench"
    title = "TreeBench"
    files = ("TreeBench.tsv",)
    columns = ("question", "answer", "category", "A", "B", "target_instances")
    published_rows = 405
    instruction = "Answer with the correct option's letter directly. \n"

    def prompt(self, question: Question) -> str:
        return choice_prompt(question, self.instruction)

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._with_overlap(super().score(question, answer), question, answer)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._with_overlap(super().score_deepeyesv2(question, answer), question, answer)

    def _with_overlap(self, score: Score, question: Question, answer: BenchmarkAnswer) -> Score:
        targets = ast.literal_eval(columns_of(question)["target_instances"] or "[]")
        score.details["overlap"] = mean_overlap(answer.text, targets)
        return score

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        *rows, overall = super().aggregate(scores)
        overlaps = [
            Score(score.details["overlap"], cluster=score.cluster, question_id=score.question_id)
            for score in scores
            if score.value is not None
        ]
        return [*rows, ResultRow.from_scores("mIoU", overlaps), overall]


@register_benchmark
class TreeBenchDeepEyesV2(TreeBench):
    """TreeBench with the prompts of the released evaluation: questions about text in the image come without options."""

    name = "treebench_deepeyesv2"
    title = "TreeBench, released prompts"
    protocol = f"{TreeBench.protocol}; options as released: none for Perception/OCR"
    columns = ("question", "answer", "category", OPTIONS, "target_instances")

    def prompt(self, question: Question) -> str:
        columns = columns_of(question)
        text = f"Hint: {columns['hint']}\n" if columns.get("hint") else ""
        text += f"Question: {question.text}\n"
        if columns["category"] != "Perception/OCR":
            text += f"\nOptions:\n{columns[OPTIONS]}{self.instruction}"
        return text
