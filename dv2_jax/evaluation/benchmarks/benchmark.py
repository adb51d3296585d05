"""Defines a benchmark: questions, the prompt of each, the score of an answer, and the table made of the scores.

Adding one is a subclass in one file, which overrides what differs from the defaults; `load` is the one required method::

    @register_benchmark
    class Capitals(Benchmark):
        name = "capitals"
        source = "written by hand"

        def load(self, config, read):
            return [Question("c0", "plain", "reason", "Capital of France?", (), "Paris")]

A configuration names it `capitals` once its module is imported, or `my_package.my_module:Capitals` without any import.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config, RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.evaluation.statistics import mean, wilson_interval
from dv2_jax.rewards import is_correct
from dv2_jax.rollout.question_sources import ReadRows

OVERALL_ROW = "overall"
JUDGE = "judge"  # in `Benchmark.requires`; every other entry names a tool


@dataclass(frozen=True)
class BenchmarkAnswer:
    """The response to one question, as benchmarks score it.

    `text` is everything after the prompt, observations included; `final` is the content of its final `<answer>`, None
    where there is none. `trajectory` holds turns and tokens; it is None where only the text is known. `reward_config`
    has the verdict sources and the judge of the run.
    """

    text: str
    final: str | None
    reward_config: RewardConfig
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Score:
    """The score of one answer: correct, wrong, or failed because no verdict was possible.

    Attributes:
        value: from 0 to 1; None: failed.
        failure: the reason for which the infrastructure gave no answer or no verdict; required where `value` is None.
        group: the row of the result table that counts this answer; empty: the skill of the question.
        extracted: the part of the answer that was compared, if the benchmark extracts one.
        details: further JSON values that `Benchmark.aggregate` needs.
        question_id: set by the run.
    """

    value: float | None
    failure: str = ""
    group: str = ""
    extracted: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    question_id: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.failure:
            raise ValueError("a score without a value needs the reason in `failure`")
        if self.value is not None and not 0 <= self.value <= 1:  # also NaN
            raise ValueError(f"score {self.value} is not between 0 and 1")
        json.dumps(self.details)  # raises for what cannot be stored

    @property
    def outcome(self) -> str:
        """`correct` (full score), `wrong` or `failed`."""
        return "failed" if self.value is None else "correct" if self.value == 1 else "wrong"


@dataclass(frozen=True)
class ResultRow:
    """One row of a benchmark's result table.

    `value` and `interval` (95 %) are fractions of 1; both are None without a scored answer. `failed` answers are not
    among the `n` scored ones.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    failed: int

    @classmethod
    def from_scores(cls, name: str, scores: Sequence[Score]) -> ResultRow:
        """Averages scores, with the Wilson interval, which is conservative where answers have partial credit."""
        values = [float(score.value) for score in scores if score.value is not None]
        failed = len(scores) - len(values)
        if not values:
            return cls(name, None, None, 0, failed)
        return cls(name, mean(values), wilson_interval(sum(values), len(values)), len(values), failed)

    def to_dict(self) -> dict[str, Any]:
        """Converts to the JSON types of `results.json`."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


class Benchmark(ABC):
    """A benchmark. The defaults ask the question's own text, score by `reward.verdicts`, and aggregate per skill."""

    name: str  # in configurations, tables and file names: letters, digits, `.`, `_`, `-`
    source: str = ""  # origin of the questions, for the listing
    requires: tuple[str, ...] = ()  # names of tools, or `judge`

    @abstractmethod
    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        """Returns the questions, with ids that are unique in the benchmark. Every host loads the same ones.

        Args:
            read: `read(key, path, size=0)` reads rows in the released format and checks them under `data.bad_rows`;
                `key` is the configuration field that names the file.
        """

    def row_count(self, config: Config) -> int | None:
        """Returns the number of questions for the listing, without loading them; None: unknown."""
        return None

    def prompt(self, question: Question) -> str:
        """Returns the user's message, images aside. A question with its own `messages` is asked with them, unchanged."""
        return question.text

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores an answer. Called in threads; an exception counts the answer as failed, with its message.

        `question` is as loaded, so that a judge does not see the wording of the prompt.
        """
        return Score(float(is_correct(question, answer.text, answer.reward_config)))

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        """Returns the rows of the result table: by default one per group, in order of appearance, and `overall`."""
        groups: dict[str, list[Score]] = {}
        for score in scores:
            groups.setdefault(score.group, []).append(score)
        rows = [ResultRow.from_scores(name, members) for name, members in groups.items()]
        return [*rows, ResultRow.from_scores(OVERALL_ROW, scores)]

    def guessing_questions(self, config: Config) -> Sequence[Question] | None:
        """Returns training questions for the baseline of commonest answers; None: the benchmark has none."""
        return None
