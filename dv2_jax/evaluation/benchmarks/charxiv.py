"""CharXiv: figures of scientific papers, described and reasoned about (arXiv 2406.18521)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import JUDGE, BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, columns_of, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.graded_json import read_grade, read_grade_deepeyesv2


class CharXiv(KitBenchmark):
    """CharXiv: a judge grades each reply with the prompt of its row, and answers with a JSON object.

    A reply without a grade is undecided; VLMEvalKit counts 0 after ten tries at temperature 0. `score_deepeyesv2` counts 0
    for it too, and for a grade in a code block, or with the key `extracted_answer` of later versions of the file.
    """

    requires = (JUDGE,)
    protocol = "a judge grades by the row's own prompt, temperature 0 (ms-vlmeval 0.0.20: gpt-4o-mini)"
    groups: ClassVar[dict[str, str]]

    def question(self, id_: str, columns: Mapping[str, str], images: tuple[bytes, ...]) -> Question:
        kind = columns[self.group_column].removesuffix(".0")
        named = self.groups.get(kind, f"{self.group_column} {kind}")
        return super().question(id_, {**columns, self.group_column: named}, images)

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        if answer.judge is None:
            return self.needs_judge(question, "every answer is graded by one")
        reply = self._reply(question, answer, answer.prediction)
        grade = read_grade(reply)
        return self.undecided(question, reply) if grade is None else self.scored(question, grade[0], extracted=grade[1])

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        if answer.judge is None:
            return self.needs_judge(question, "every answer is graded by one")
        grade = read_grade_deepeyesv2(self._reply(question, answer, prediction_deepeyesv2(answer)))
        return self.scored(question, grade[0], extracted=grade[1])

    def _reply(self, question: Question, answer: BenchmarkAnswer, prediction: str) -> str:
        text = columns_of(question)["grading_query"].replace("{PREDICTION}", prediction)
        assert answer.judge is not None
        return answer.judge.ask([{"role": "user", "content": text}], temperature=0, max_tokens=256, seed=42, top_p=1)


@register_benchmark
class CharXivDescriptive(CharXiv):
    """Descriptive questions: four per figure, in five groups."""

    name = "charxiv_descriptive"
    title = "CharXiv descriptive"
    files = ("CharXiv_descriptive_val.tsv",)
    columns = ("question", "answer", "qid", "grading_query")
    group_column = "qid"
    published_rows = 4_000
    groups: ClassVar[dict[str, str]] = {
        **dict.fromkeys("1234567", "Information Extraction"),
        **dict.fromkeys(("8", "9", "13", "14", "15"), "Enumeration"),
        **dict.fromkeys(("11", "16", "18"), "Pattern Recognition"),
        **dict.fromkeys(("10", "12", "19"), "Counting"),
        "17": "Compositionality",
    }


@register_benchmark
class CharXivReasoning(CharXiv):
    """Reasoning questions: one per figure, in four groups."""

    name = "charxiv_reasoning"
    title = "CharXiv reasoning"
    files = ("CharXiv_reasoning_val.tsv",)
    columns = ("question", "answer", "inst_category", "grading_query")
    group_column = "inst_category"
    published_rows = 1_000
    groups: ClassVar[dict[str, str]] = {
        "1": "Text-in-Chart",
        "2": "Text-in-General",
        "3": "Number-in-Chart",
        "4": "Number-in-General",
    }
