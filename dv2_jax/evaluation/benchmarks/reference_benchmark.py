"""The base of benchmarks whose answers are compared with reference answers, by a rule first and then by the judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.agent.tools.code import CodeTool
from dv2_jax.agent.tools.image_search import ImageSearchTool
from dv2_jax.agent.tools.search import SearchTool
from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkAnswer, Score
from dv2_jax.evaluation.readers.locate import find_files
from dv2_jax.evaluation.readers.table_file import IMAGE_DIGEST, read_table
from dv2_jax.evaluation.scorers.token_f1 import exact_match
from dv2_jax.rewards.number_matching import parse_quantity
from dv2_jax.rollout.question_sources import ReadRows

NEEDS_JUDGE = "needs a judge: the rule does not decide about the answer; set --config.reward.judge_base_url=URL"
CODE_AND_SEARCH = (CodeTool.name, SearchTool.name, ImageSearchTool.name)
CODE_ONLY = (CodeTool.name,)
REFERENCES = "references"  # in `Question.meta`: every accepted answer


class ReferenceBenchmark(Benchmark):
    """A benchmark in parquet or JSON files with accepted answers in `Question.meta["references"]`.

    An answer that the rule accepts is correct, and an integer where the references are other integers is wrong;
    everything else is judged. Without a judge it is failed, not wrong. The authors of DeepEyesV2 released no code for these
    benchmarks, so both scorers are this one.
    """

    tools = CODE_AND_SEARCH
    uses_judge = True
    columns: tuple[str, ...]  # that the file must have

    @abstractmethod
    def parse(self, row: Mapping[str, Any], number: int, reader: RowReader) -> Question | None:
        """Converts row `number` of the data set; returns None if it has added issues to `reader`."""

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        return read_table(find_files(config, self.files), self.columns, self.parse, config.data)

    def matches(self, question: Question, prediction: str) -> bool:
        """Returns whether the rule accepts a prediction."""
        return exact_match(prediction, question.meta[REFERENCES])

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        prediction = answer.prediction
        fields: dict[str, Any] = {
            "group": question.skill,
            "cluster": question.meta.get(IMAGE_DIGEST, "")[:16],
            "extracted": prediction,
            "details": self.details(question, prediction),
        }
        if not prediction.strip():
            return Score(0.0, **fields)
        if self.matches(question, prediction):
            return Score(1.0, **fields)
        if is_other_integer(prediction, question.meta[REFERENCES]):
            return Score(0.0, **fields)
        if answer.judge is None:
            return Score(None, NEEDS_JUDGE, **fields)
        verdict = answer.judge.verdict(question.text, question.meta[REFERENCES], prediction)
        return Score.from_verdict(verdict, **fields)

    def details(self, question: Question, prediction: str) -> dict[str, Any]:
        """Returns what `aggregate` needs."""
        return {}


def is_other_integer(prediction: str, references: Sequence[str]) -> bool:
    """Returns whether the prediction and all references are integers without a unit, and the prediction is none of them.

    A reference that joins others with " or " is not looked at.
    """
    single = [reference for reference in references if " or " not in reference]
    found, *wanted = (_integer(text) for text in (prediction, *single))
    return found is not None and bool(wanted) and None not in wanted and found not in wanted


def _integer(text: str) -> int | None:
    quantity = parse_quantity(text)
    if quantity is None or quantity.unit is not None or quantity.rounded or quantity.value.denominator != 1:
        return None
    return int(quantity.value)
