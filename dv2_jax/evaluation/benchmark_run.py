"""One benchmark in one evaluation: its questions, read one by one, and the results of each policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dv2_jax.config import Config, ConfigError, UserError
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answerers.answerer import answer_id
from dv2_jax.evaluation.baselines import guessing_accuracy
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, ResultRow, Score
from dv2_jax.rollout.question_sources import ReadRows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionRow:
    """A question as it was loaded and as it is asked, with the prompt of the benchmark; both None: it cannot be read."""

    loaded: Question | None
    asked: Question | None
    failure: str = ""


@dataclass
class BenchmarkRun:
    """The questions of a benchmark, and the results so far by the name of the policy.

    Attributes:
        questions: as loaded; a lazy sequence reads a question when it is indexed, so that memory holds none.
        ids: of the evaluated questions, the first `eval.size` ones.
        rows: of `Benchmark.aggregate`, by scorer and policy; those of the first scorer fill the tables.
        failures: question id → reason, for answers that failed or are undecided under the first scorer.
    """

    benchmark: Benchmark
    questions: Sequence[Question]
    ids: Sequence[str]
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # tool use and accuracy per skill
    rows: dict[str, dict[str, list[ResultRow]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    usage: dict[str, dict[str, Any]] = field(default_factory=dict)  # tokens, seconds, tool calls and costs
    protocols: dict[str, str] = field(default_factory=dict)  # one line per policy
    unanswered: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)  # answers without a verdict, undecided ones aside
    disagreements: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # by policy and scorer
    examples: list[dict[str, Any]] = field(default_factory=list)  # of disagreements
    human_labels: dict[str, dict[str, Any]] = field(default_factory=dict)  # agreement of each policy's scores
    guessing: dict[str, float] | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """The name of the benchmark."""
        return self.benchmark.name

    @classmethod
    def load(cls, benchmark: Benchmark, config: Config, read: ReadRows) -> BenchmarkRun:
        """Loads the questions, and writes the prompt of the first one. Collective.

        Raises:
            ConfigError: the benchmark has no questions, repeats an id, or its code raises.
            RowError: a data file cannot be used under `data.bad_rows`.
        """
        try:
            questions = benchmark.load(config, read)
            ids = _ids(questions)[: config.eval.size or None]
            if ids:
                benchmark.prompt(questions[0])
        except (UserError, OSError):
            raise
        except Exception as error:
            raise ConfigError(f"benchmark {benchmark.name!r}: {type(error).__name__}: {error}") from error
        if not ids:
            raise ConfigError(f"benchmark {benchmark.name!r} has no questions")
        seen: set[str] = set()
        for question_id in ids:
            if question_id in seen:
                raise ConfigError(f"benchmark {benchmark.name!r} has two questions with the id {question_id!r}")
            seen.add(question_id)
        return cls(benchmark, questions, ids)

    def row(self, index: int) -> QuestionRow:
        """Reads a question and writes its prompt; a row that cannot be read or asked has the reason in `failure`."""
        try:
            question = self.questions[index]
            text = self.benchmark.prompt(question)
        except OSError:  # the file, not the row
            raise
        except Exception as error:  # a broken cell, or code from outside: it costs this row, not the others
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return QuestionRow(None, None, f"the row cannot be used: {reason}")
        return QuestionRow(question, question if text == question.text else replace(question, text=text))

    def aggregate(self, stage: str, scores: Mapping[str, Sequence[Score]]) -> None:
        """Makes the tables of a policy from its scores, by scorer; `error` keeps the message if the code raises."""
        first = next(iter(scores.values()))
        missing = [score for score in first if score.value is None]
        self.failures[stage] = {answer_id(score.question_id, score.sample): score.failure for score in missing}
        self.failed[stage] = sum(not score.is_undecided for score in missing)
        for scorer, found in scores.items():
            self.rows.setdefault(scorer, {})[stage] = self._rows(found) if found else []

    def _rows(self, scores: Sequence[Score]) -> list[ResultRow]:
        try:
            rows = list(self.benchmark.aggregate(scores))
        except Exception as error:  # code from outside: the run keeps its answers and the other benchmarks
            _log.warning("%s cannot aggregate its scores", self.name, exc_info=error)
            self.error = f"benchmark {self.name!r}: aggregate: {type(error).__name__}: {error}"
            return []
        if not rows or not all(isinstance(row, ResultRow) for row in rows):
            self.error = f"benchmark {self.name!r}: aggregate returned {rows!r}, not a list of ResultRow"
            return []
        return rows

    def guess(self, config: Config) -> None:
        """Adds the accuracy of always giving the commonest training answer, if the benchmark has training questions."""
        train = self.benchmark.guessing_questions(config)
        asked = [self.questions[index] for index in range(len(self.ids))] if train is not None else []
        self.guessing = None if train is None else guessing_accuracy(asked, train)

    def to_dict(self) -> dict[str, Any]:
        """Converts to the entry of `benchmarks` in `results.json`; `rows` has those of the first scorer."""
        tables = {
            scorer: {stage: [row.to_dict() for row in rows] for stage, rows in stages.items()}
            for scorer, stages in self.rows.items()
        }
        first = next(iter(tables.values()), {})
        entry = {
            "source": self.benchmark.source,
            "title": self.benchmark.title or self.name,
            "questions": len(self.ids),
            "rows": first,
            "protocols": self.protocols,
            "usage": self.usage,
        }
        further = {scorer: stages for scorer, stages in list(tables.items())[1:]}
        unanswered = {stage: count for stage, count in self.unanswered.items() if count}
        found = {
            "scorers": further,
            "disagreements": self.disagreements,
            "unanswered": unanswered,
            "human_labels": self.human_labels,
            "guessing": self.guessing,
            "error": self.error,
        }
        return entry | {key: value for key, value in found.items() if value}

    def file_content(self, model: str, stages: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Returns the content of `results/<name>.json`: the entry, and per policy its summary and failed questions."""
        return {"benchmark": self.name, "model": model, "stages": list(stages), **self.to_dict(),
                "failures": self.failures, **self.summaries}  # fmt: skip

    def path(self, run_dir: Path) -> Path:
        """Returns the path of the benchmark's own result file."""
        return run_dir / "results" / f"{self.name}.json"


def _ids(questions: Sequence[Question]) -> Sequence[str]:
    """Returns the ids of all questions; a lazy sequence knows them without reading images."""
    known = getattr(questions, "ids", None)
    return known() if callable(known) else [question.id for question in questions]
