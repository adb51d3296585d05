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
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config, RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.evaluation.statistics import (
    Z95,
    ClusterTotals,
    bootstrap_interval,
    mean,
    smallest_visible_difference,
    wilson_interval,
)
from dv2_jax.rewards import is_correct
from dv2_jax.rewards.verdicts import first_verdict
from dv2_jax.rollout.question_sources import ReadRows

OVERALL_ROW = "overall"
JUDGE = "judge"  # in `Benchmark.requires`; every other entry names a tool


@dataclass(frozen=True)
class BenchmarkAnswer:
    """The response to one question, as benchmarks score it.

    Attributes:
        text: everything after the prompt, observations included.
        final: the content of the final `<answer>`; None where there is none.
        reward_config: verdict sources and judge of the run.
        trajectory: turns and tokens; None where only the text is known.
        judge: asks the judge of the run and stores its replies; None without a judge.
        last_turn: the text that the model wrote last, its tags included; empty: `text`.
    """

    text: str
    final: str | None
    reward_config: RewardConfig
    trajectory: Trajectory | None = None
    judge: AnswerJudge | None = None
    last_turn: str = ""

    @property
    def prediction(self) -> str:
        """The text that rules score: the final answer, or else the last turn without its thoughts."""
        if self.final is not None:
            return self.final
        return (self.last_turn or self.text).rsplit("</think>", 1)[-1].strip()


class AnswerJudge(Protocol):
    """A judge as benchmarks use it: each reply is stored with the score, and no request is sent twice."""

    def ask(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> str:
        """Returns the reply to a prompt of the benchmark's own, at temperature 0 unless `sampling` says otherwise.

        Raises:
            JudgeUnavailable: the endpoint gave no reply.
        """
        ...

    def verdict(self, question: str, references: Sequence[str], answer: str, rubric: str = "") -> bool | None:
        """Returns whether the answer agrees with one of the references; None if the reply cannot be parsed.

        Args:
            rubric: a registered rubric; empty: that of the run, `eval.judge_rubric`.

        Raises:
            JudgeUnavailable: the endpoint gave no reply.
        """
        ...


@dataclass(frozen=True)
class Score:
    """The score of one answer: correct, wrong, failed (no answer or no verdict) or undecided (an unreadable verdict).

    Attributes:
        value: from 0 to 1; None: failed or undecided.
        failure: the reason for which the infrastructure gave no answer or no verdict; required where `value` is None.
        is_undecided: the judge replied, but its reply contains no verdict; `failure` quotes it.
        group: the row of the result table that counts this answer; empty: the skill of the question.
        cluster: answers with the same cluster are not independent: they share an image or a template. Empty: independent.
        extracted: the part of the answer that was compared, if the benchmark extracts one.
        details: further JSON values that `Benchmark.aggregate` needs.
        question_id: set by the run.
        sample: index among the samples of the question, set by the run.
    """

    value: float | None
    failure: str = ""
    group: str = ""
    extracted: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    question_id: str = ""
    is_undecided: bool = False
    cluster: str = ""
    sample: int = 0

    def __post_init__(self) -> None:
        if self.value is None and not self.failure:
            raise ValueError("a score without a value needs the reason in `failure`")
        if self.value is not None and not 0 <= self.value <= 1:  # also NaN
            raise ValueError(f"score {self.value} is not between 0 and 1")
        if self.value is not None and self.is_undecided:
            raise ValueError(f"score {self.value} is decided: an undecided one has no value")
        json.dumps(self.details)  # raises for what cannot be stored

    @classmethod
    def from_verdict(cls, verdict: bool | None, reply: str = "", **fields: Any) -> Score:
        """Converts a judge's verdict; None becomes an undecided score that quotes `reply`."""
        if verdict is None:
            return cls(None, f"the judge's reply has no verdict: {reply[:200]}", is_undecided=True, **fields)
        return cls(float(verdict), **fields)

    @property
    def outcome(self) -> str:
        """`correct` (full score), `wrong`, `failed` or `undecided`."""
        if self.value is None:
            return "undecided" if self.is_undecided else "failed"
        return "correct" if self.value == 1 else "wrong"


@dataclass(frozen=True)
class ResultRow:
    """One row of a benchmark's result table.

    `value` and `interval` (95 %) are fractions of 1; both are None without a scored answer. `failed` and `undecided`
    answers are not among the `n` scored ones. `clusters` is the number of independent groups of answers,
    `smallest_visible` the smallest difference to another run that a paired test shows with 80 % power, if the runs differ
    on 20 % of the questions.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    failed: int
    undecided: int = 0
    clusters: int | None = None
    smallest_visible: float | None = None

    @classmethod
    def from_scores(cls, name: str, scores: Sequence[Score]) -> ResultRow:
        """Averages the samples of each question, then the questions.

        The interval is Wilson's, conservative where answers have partial credit; where several answers share a cluster
        or a question, it is that of `statistics.clustered_interval`.
        """
        scored = [score for score in scores if score.value is not None]
        counts = _counts(scores)
        if not scored:
            return cls(name, None, None, **counts)
        questions = _questions(scored)
        samples = Counter(questions)
        weights = [1 / samples[question] for question in questions]
        totals = ClusterTotals.of([float(score.value) for score in scored], _clusters(scored), weights)
        single = ClusterTotals.of([float(score.value) for score in scored], questions, weights)
        errors = totals.standard_error(), single.standard_error()
        effect = (
            (errors[0] / errors[1]) ** 2 if 0 < errors[1] and errors[0] < math.inf else len(samples) / len(totals.sums)
        )
        visible = smallest_visible_difference(len(samples), design_effect=effect)
        return cls(name, totals.mean, totals.interval(), **counts, clusters=len(totals.sums), smallest_visible=visible)

    @classmethod
    def from_statistic(
        cls,
        name: str,
        scores: Sequence[Score],
        statistic: Callable[[Sequence[Score]], float | None],
        resamples: int = 1000,
    ) -> ResultRow:
        """Applies a statistic that is no mean of scores, such as the worst of several variants of a question.

        With several samples per question, it is the mean of the statistics of each sample. The interval is that of the
        bootstrap over clusters, with a fixed seed.

        Args:
            statistic: of one score per question, failed ones included, so that it decides about questions of which a
                part failed; None: undefined. It must find scores that belong together by `cluster` or `question_id`: in
                a resample, copies of a cluster differ in both.
        """
        counts, groups = _counts(scores), dict[Hashable, dict[int, list[Score]]]()
        for score, cluster in zip(scores, _clusters(scores), strict=True):
            groups.setdefault(cluster, {}).setdefault(score.sample, []).append(score)
        clusters = list(groups.values())
        copies: dict[tuple[int, int], dict[int, list[Score]]] = {}  # of clusters that a resample contains several times

        def of_samples(drawn: Sequence[int]) -> float | None:
            samples: dict[int, list[Score]] = {}
            seen: Counter[int] = Counter()
            for index in drawn:
                key = index, seen[index]
                seen[index] += 1
                if key not in copies:
                    copies[key] = _copies(clusters[index], key[1]) if key[1] else clusters[index]
                for sample, members in copies[key].items():
                    samples.setdefault(sample, []).extend(members)
            found = [value for members in samples.values() if (value := statistic(members)) is not None]
            return mean(found) if found else None

        value = of_samples(range(len(clusters))) if counts["n"] else None
        if value is None:
            return cls(name, None, None, **counts)
        interval = bootstrap_interval(len(clusters), of_samples, resamples)
        if interval is None or interval[0] == interval[1]:  # all resamples alike: no estimate of the variance
            interval = wilson_interval(value * len(clusters), len(clusters))
        width = interval[1] - interval[0]
        n = value * (1 - value) * (2 * Z95 / width) ** 2  # of independent answers with an interval of that width
        n = min(n, float(counts["n"])) if 0 < value < 1 else len(clusters)
        return cls(
            name, value, interval, **counts, clusters=len(clusters), smallest_visible=smallest_visible_difference(n)
        )

    def to_dict(self) -> dict[str, Any]:
        """Converts to the JSON types of `results.json`."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


def _counts(scores: Sequence[Score]) -> dict[str, int]:
    """Returns the numbers of scored, failed and undecided answers, as arguments of `ResultRow`."""
    scored, undecided = sum(score.value is not None for score in scores), sum(score.is_undecided for score in scores)
    return {"n": scored, "failed": len(scores) - scored - undecided, "undecided": undecided}


def _questions(scores: Sequence[Score]) -> list[Hashable]:
    """Returns keys that the samples of a question share; scores without a question id are different questions."""
    return [score.question_id or index for index, score in enumerate(scores)]


def _clusters(scores: Sequence[Score]) -> list[Hashable]:
    """Returns keys that correlated answers share: the cluster, or without one the question."""
    pairs = zip(scores, _questions(scores), strict=True)
    return [("cluster", score.cluster) if score.cluster else ("question", question) for score, question in pairs]


def _copies(samples: Mapping[int, Sequence[Score]], copy: int) -> dict[int, list[Score]]:
    """Returns the scores of a cluster, by sample, as those of other questions in another cluster."""

    def renamed(score: Score) -> Score:
        cluster = f"{score.cluster}#{copy}" if score.cluster else ""
        return replace(score, question_id=f"{score.question_id}#{copy}", cluster=cluster)

    return {sample: [renamed(score) for score in scores] for sample, scores in samples.items()}


class Benchmark(ABC):
    """A benchmark. The defaults ask the question's own text, score by `reward.verdicts`, and aggregate per skill."""

    name: str  # in configurations, tables and file names: letters, digits, `.`, `_`, `-`
    title: str = ""  # as the paper writes it; empty: `name`
    source: str = ""  # origin of the questions, for the listing
    requires: tuple[str, ...] = ()  # names of tools, or `judge`; a run without them does not start
    uses_judge: bool = False  # without a judge, answers that its rule does not decide are failed
    files: tuple[str, ...] = ()  # published file names in `eval.data`, of which one must exist; for the listing
    published_rows: int | None = None  # number of rows of the published file
    tools: tuple[str, ...] | None = None  # tools that the published protocol has; None: all of `agent.tools`
    protocol: str = ""  # one line: the rule of scoring and what the numbers are comparable with

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
        config, judge = answer.reward_config, answer.judge
        if judge is None or JUDGE not in config.verdicts:
            return Score(float(is_correct(question, answer.text, config)))
        rules = replace(config, verdicts=tuple(name for name in config.verdicts if name != JUDGE))
        verdict = first_verdict(question, answer.text, rules)
        if verdict is None and answer.final:
            return Score.from_verdict(judge.verdict(question.text, (question.answer,), answer.final))
        return Score(float(verdict is True))

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores an answer as the released DeepEyesV2 evaluation does, its bugs included; by default as `score`.

        A benchmark that overrides it says in its docstring where the two differ.
        """
        return self.score(question, answer)

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
