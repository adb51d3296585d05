"""The base of the benchmarks that VLMEvalKit publishes as TSV files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.config import Config
from dv2_jax.data.question import DataSource, Question
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, Benchmark, BenchmarkAnswer, ResultRow, Score
from dv2_jax.evaluation.readers.locate import find_file
from dv2_jax.evaluation.readers.questions import LazyQuestions
from dv2_jax.evaluation.readers.tsv_file import TsvFile
from dv2_jax.evaluation.statistics import mean
from dv2_jax.rollout.question_sources import ReadRows

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class KitBenchmark(Benchmark):
    """A benchmark of VLMEvalKit. The prompts are the kit's; the agent's own instructions are added where it is asked.

    Rules are pinned to ms-vlmeval 0.0.20. Where the kit asks a language model, `score` asks the judge of the run, once and
    at temperature 0; without one the answer is failed, and a reply without a verdict is undecided, where the kit chooses
    at random, or counts 0. A row's columns are in `Question.meta["columns"]`, empty where pandas reads a missing value.
    """

    source = "VLMEvalKit"
    tools = tuple(tool.name for tool in default_tools() if not tool.is_search)  # as in the paper
    columns: tuple[str, ...] = ("question", "answer")  # that the file must have
    group_column = "category"
    data_source: DataSource = "perception"

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        rows = TsvFile(find_file(config, self.files), self.columns, config.data)
        return LazyQuestions(rows.ids, lambda i: self.question(rows.ids[i], rows.row(i), rows.images(i)))

    def question(self, id_: str, columns: Mapping[str, str], images: tuple[bytes, ...]) -> Question:
        """Returns the question of a row."""
        return Question(
            id=id_,
            skill=columns.get(self.group_column) or self.name,
            data_source=self.data_source,
            text=columns["question"],
            images=images,
            answer=columns["answer"],
            meta={"columns": dict(columns)},
        )

    def cluster(self, question: Question) -> str:
        """Returns the key that questions share whose answers are not independent: by default their images."""
        return hashlib.sha256(b"\0".join(question.images)).hexdigest()[:16] if question.images else ""

    def details(self, question: Question) -> dict[str, Any]:
        """Returns the columns that `aggregate` needs."""
        return {}

    def scored(self, question: Question, value: float | None, failure: str = "", **fields: Any) -> Score:
        """Returns a score with the group, cluster and details of a question."""
        details = self.details(question) | fields.pop("details", {})
        return Score(
            None if value is None else float(value),
            failure,
            group=question.skill,
            cluster=self.cluster(question),
            details=details,
            **fields,
        )

    def needs_judge(self, question: Question, purpose: str) -> Score:
        """Returns the failed score of an answer that only a judge can decide."""
        return self.scored(question, None, f"needs a judge: {purpose}; set --config.reward.judge_base_url=URL")

    def undecided(self, question: Question, reply: str) -> Score:
        """Returns the undecided score of an answer to which the judge's reply has no verdict."""
        return self.scored(question, None, f"the judge's reply has no verdict: {reply[:200]}", is_undecided=True)


def columns_of(question: Question) -> Mapping[str, str]:
    """Returns the columns of a question's row; missing values are empty."""
    return question.meta["columns"]


def choices_of(question: Question) -> dict[str, str]:
    """Returns the options of a question by letter: the columns A to Z that have a value."""
    columns = columns_of(question)
    return {letter: columns[letter] for letter in LETTERS if columns.get(letter)}


def choice_prompt(question: Question, instruction: str) -> str:
    """Returns hint, question, options and the instruction, which follows the options only where there are any."""
    hint, choices = columns_of(question).get("hint"), choices_of(question)
    text = f"Hint: {hint}\n" if hint else ""
    text += f"Question: {question.text}\n"
    if choices:
        text += "Options:\n" + "".join(f"{letter}. {option}\n" for letter, option in choices.items()) + instruction
    return text


def prediction_deepeyesv2(answer: BenchmarkAnswer) -> str:
    """Returns what the released evaluation scores: the first `<answer>` of the last response, or else all of it."""
    response = answer.last_turn or answer.text
    found = _ANSWER.search(response)
    return found[1].strip() if found else response


def group_rows(scores: Sequence[Score], key: Callable[[Score], Sequence[str]]) -> list[ResultRow]:
    """Returns one row per group, in order of appearance; a score may be in several."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        for name in key(score):
            groups.setdefault(name, []).append(score)
    return [ResultRow.from_scores(name, members) for name, members in groups.items()]


def mean_of_groups(scores: Sequence[Score], key: Callable[[Score], str]) -> float | None:
    """Returns the plain mean over groups of the mean score in each; None if nothing is scored."""
    groups: dict[str, list[float]] = {}
    for score in scores:
        if score.value is not None:
            groups.setdefault(key(score), []).append(score.value)
    return mean([mean(values) for values in groups.values()]) if groups else None


def overall_of_groups(scores: Sequence[Score], key: Callable[[Score], str]) -> ResultRow:
    """Returns the row `overall` with the mean over groups, each of which counts alike."""
    return ResultRow.from_statistic(OVERALL_ROW, scores, lambda drawn: mean_of_groups(drawn, key))
