"""The base of the benchmarks that take the first option letter of a reply, without a judge."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, group_rows, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.option_letter import read_letter_deepeyesv2, read_tagged_letter


class LetterBenchmark(KitBenchmark):
    r"""Multiple choice without a judge. `score`: the first capital A to E of the reply equals the answer.

    `score_deepeyesv2` reads `\boxed{(A)}` as `(A)`, which equals no answer. Rows of the table are task/subtask, task and
    overall, the mean over all answers.
    """

    columns = ("question", "answer", "category")
    protocol = "the first letter A to E of the reply (ms-vlmeval 0.0.20); no judge"

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        letter = read_tagged_letter(answer.prediction)
        return self.scored(question, letter == question.answer, extracted=letter)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        letter = read_letter_deepeyesv2(prediction_deepeyesv2(answer))
        return self.scored(question, letter == question.answer, extracted=letter)

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        subtasks = group_rows(scores, lambda score: [score.group])
        tasks = group_rows(scores, lambda score: [score.group.split("/")[0]])
        return [*subtasks, *tasks, ResultRow.from_scores(OVERALL_ROW, scores)]
