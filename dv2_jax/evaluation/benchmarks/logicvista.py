"""LogicVista: logical reasoning about figures (arXiv 2407.04973)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, columns_of, group_rows, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.judge_prompts import extract_letters
from dv2_jax.evaluation.scorers.letter_sets import bare_letters, read_letters, same_letters

_SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")


@register_benchmark
class LogicVista(KitBenchmark):
    """LogicVista: the letters that a judge extracts are those of the answer; rows per skill.

    A reply of letters alone needs no judge. VLMEvalKit asks for every reply, up to five times at rising temperatures, and
    then counts 0.
    """

    name = "logicvista"
    title = "LogicVista"
    files = ("LogicVista.tsv",)
    columns = ("question", "answer", "skill")
    group_column = "skill"
    data_source = "reason"
    published_rows = 448
    uses_judge = True
    protocol = "the set of letters, extracted by a judge unless the reply is letters alone (ms-vlmeval 0.0.20)"

    def details(self, question: Question) -> dict[str, Any]:
        return {"skills": [skill for skill in _SKILLS if skill in columns_of(question)["skill"]]}

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        return self._read(question, answer.prediction, answer)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the released evaluation: the same rule, on the entire response where it has no `<answer>`."""
        return self._read(question, prediction_deepeyesv2(answer), answer)

    def _read(self, question: Question, prediction: str, answer: BenchmarkAnswer) -> Score:
        letters = bare_letters(prediction)
        if letters is None:
            if answer.judge is None:
                return self.needs_judge(question, "letters must be extracted from the reply")
            reply = answer.judge.ask(extract_letters(question.text, prediction))
            letters = read_letters(reply)
            if letters is None:
                return self.undecided(question, reply)
        return self.scored(question, same_letters(letters, question.answer), extracted=letters)

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        rows = group_rows(scores, lambda score: score.details["skills"])
        return [*rows, ResultRow.from_scores(OVERALL_ROW, scores)]
