"""ChartQA: numbers and words from charts (arXiv 2203.10244)."""

from __future__ import annotations

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.literal_lists import read_list
from dv2_jax.evaluation.scorers.relaxed_accuracy import relaxed_equal, relaxed_numbers


@register_benchmark
class ChartQA(KitBenchmark):
    """ChartQA: relaxed accuracy, the best over the reference answers; rows per split.

    `score_deepeyesv2` follows the released evaluation, in which the arguments are swapped: numbers are within 5 % of the
    *prediction*, and what is no pair of numbers and not equal goes to the rubric judge, with the prediction as its
    reference and the reference as the answer.
    """

    name = "chartqa"
    title = "ChartQA"
    files = ("ChartQA_TEST.tsv",)
    columns = ("question", "answer", "split")
    group_column = "split"
    published_rows = 2_500
    protocol = (
        "relaxed accuracy: numbers within 5 % of the reference, else equal in any letter case (ms-vlmeval 0.0.20)"
    )

    def prompt(self, question: Question) -> str:
        return f"{question.text}\nAnswer the question using a single word or phrase."

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        prediction = answer.prediction.strip()
        return self.scored(question, any(relaxed_equal(reference, prediction) for reference in _references(question)))

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the class says. The judge is asked only if no reference is right by the rules."""
        prediction, asked = prediction_deepeyesv2(answer).strip(), []
        for reference in _references(question):
            numbers = relaxed_numbers(prediction, reference)
            is_equal = reference.lower() == prediction.lower()
            if is_equal if numbers is None else numbers:
                return self.scored(question, True)
            asked += [reference] if numbers is None else []
        if not asked:
            return self.scored(question, False)
        if answer.judge is None:
            return self.needs_judge(question, "the reply equals no reference and is no number")
        verdicts = [
            answer.judge.verdict(question.text.strip(), [prediction], reference, rubric="consistency")
            for reference in asked
        ]
        if not any(verdicts) and None in verdicts:
            return self.undecided(question, "")
        return self.scored(question, any(verdicts))


def _references(question: Question) -> list[str]:
    return read_list(question.answer) or [question.answer]
