"""The base of the math benchmarks in which a judge extracts the answer from a reply, and a rule compares it."""

from __future__ import annotations

from abc import abstractmethod

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.judge_prompts import Messages, extract_answer


class ExtractionBenchmark(KitBenchmark):
    """Answers that are compared by a rule after extraction.

    A reply that already is an answer of the type that is asked for (a bare number or letter) is compared as it is, right
    or wrong, because there is nothing to extract; VLMEvalKit sends it to the judge too.
    """

    uses_judge = True

    data_source = "reason"

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._extracted(question, answer.prediction, answer)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the released evaluation: the entire last response where it has no `<answer>`."""
        return self._extracted(question, prediction_deepeyesv2(answer), answer, is_released=True)

    def _extracted(
        self, question: Question, prediction: str, answer: BenchmarkAnswer, is_released: bool = False
    ) -> Score:
        bare = self.bare_answer(question, prediction)
        if bare is None:
            if answer.judge is None:
                return self.needs_judge(question, "an answer must be extracted from the reply")
            bare = answer.judge.ask(self.extraction_prompt(question, prediction)).strip()
        verdict = self.compare_deepeyesv2(question, bare) if is_released else self.compare(question, bare)
        if verdict is None:
            return self.scored(question, None, "the comparison of two expressions took too long", extracted=bare)
        return self.scored(question, verdict, extracted=bare)

    def extraction_prompt(self, question: Question, prediction: str) -> Messages:
        """Returns the request to extract the answer."""
        return extract_answer(question.text, prediction)

    @abstractmethod
    def bare_answer(self, question: Question, prediction: str) -> str | None:
        """Returns the answer that a reply consists of, or that rules read in it; None if it must be extracted."""

    @abstractmethod
    def compare(self, question: Question, extracted: str) -> bool | None:
        """Returns whether an extracted answer is right; None if that could not be computed in time."""

    def compare_deepeyesv2(self, question: Question, extracted: str) -> bool | None:
        """Returns whether an extracted answer is right in the released evaluation; by default as `compare`."""
        return self.compare(question, extracted)
