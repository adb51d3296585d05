"""One benchmark in one evaluation: its questions, and the results of each policy, stored as they are obtained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config, ConfigError, UserError
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answering import roll_out
from dv2_jax.evaluation.baselines import guessing_accuracy
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, ResultRow, Score
from dv2_jax.evaluation.scoring import gather_scores, score_trajectories
from dv2_jax.evaluation.stage_plan import Stage
from dv2_jax.evaluation.summary import summarize
from dv2_jax.parallel import distributed
from dv2_jax.parallel.outage import raise_outage_together
from dv2_jax.rollout.question_sources import ReadRows
from dv2_jax.rollout.scheduler import ToolBackend
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.telemetry.progress import Display

_log = logging.getLogger(__name__)


@dataclass
class BenchmarkRun:
    """The questions of a benchmark, as loaded and as asked, and the results so far, by the name of the policy."""

    benchmark: Benchmark
    questions: Sequence[Question]
    prompted: Sequence[Question]
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # tool use and accuracy per skill
    rows: dict[str, list[ResultRow]] = field(default_factory=dict)  # of `Benchmark.aggregate`
    failures: dict[str, dict[str, str]] = field(default_factory=dict)  # question id → reason
    guessing: dict[str, float] | None = None
    error: str = ""
    scores: list[Score] = field(default_factory=list)  # of the stage answered last

    @property
    def name(self) -> str:
        """The name of the benchmark."""
        return self.benchmark.name

    @classmethod
    def load(cls, benchmark: Benchmark, config: Config, read: ReadRows) -> BenchmarkRun:
        """Loads the questions and writes their prompts. Collective.

        Raises:
            ConfigError: the benchmark has no questions, repeats an id, or its code raises.
            RowError: a data file cannot be used under `data.bad_rows`.
        """
        try:
            questions = benchmark.load(config, read)
            prompted = [_with_prompt(benchmark, question) for question in questions]
        except (UserError, OSError):
            raise
        except Exception as error:
            raise ConfigError(f"benchmark {benchmark.name!r}: {type(error).__name__}: {error}") from error
        if not questions:
            raise ConfigError(f"benchmark {benchmark.name!r} has no questions")
        seen: set[str] = set()
        for question in questions:
            if question.id in seen:
                raise ConfigError(f"benchmark {benchmark.name!r} has two questions with the id {question.id!r}")
            seen.add(question.id)
        return cls(benchmark, questions, prompted)

    def answer(
        self, stage: Stage, session: RolloutSession, display: Display, tools: ToolBackend | None = None
    ) -> list[Trajectory]:
        """Answers and scores every question with the session's weights; returns this host's trajectories. Collective.

        The results are complete after `aggregate`, so that trajectories can be stored first.
        """
        own = len(distributed.shard_for_process(range(len(self.questions))))
        with display.track(f"{stage.title}: {self.name}", own, unit="questions") as bar:
            scheduler = session.scheduler(temperature=0.0, tools=tools)
            with raise_outage_together():
                trajectories = roll_out(self.prompted, scheduler, lambda _: bar.advance())
                questions = distributed.shard_for_process(self.questions)
                own_scores = score_trajectories(
                    self.benchmark, questions, trajectories, session.tokenizer, session.config.reward
                )
        self.scores = gather_scores(own_scores)
        self.summaries[stage.name] = summarize(trajectories).summary()
        return trajectories

    def aggregate(self, stage: Stage) -> None:
        """Makes the table of the stage answered last; `error` keeps the message if the benchmark's own code raises."""
        failed = [score for score in self.scores if score.value is None]
        self.failures[stage.name] = {score.question_id: score.failure for score in failed}
        self.rows[stage.name] = []
        try:
            rows = list(self.benchmark.aggregate(self.scores))
        except Exception as error:  # code from outside: the run keeps its answers and the other benchmarks
            _log.warning("%s cannot aggregate its scores", self.name, exc_info=error)
            self.error = f"benchmark {self.name!r}: aggregate: {type(error).__name__}: {error}"
            return
        if not rows or not all(isinstance(row, ResultRow) for row in rows):
            self.error = f"benchmark {self.name!r}: aggregate returned {rows!r}, not a list of ResultRow"
            return
        self.rows[stage.name] = rows

    def guess(self, config: Config) -> None:
        """Adds the accuracy of always giving the commonest training answer, if the benchmark has training questions."""
        train = self.benchmark.guessing_questions(config)
        self.guessing = None if train is None else guessing_accuracy(self.questions, train)

    def to_dict(self) -> dict[str, Any]:
        """Converts to the entry of `benchmarks` in `results.json`."""
        entry = {
            "source": self.benchmark.source,
            "questions": len(self.questions),
            "rows": {stage: [row.to_dict() for row in rows] for stage, rows in self.rows.items()},
        }
        found = {"guessing": self.guessing, "error": self.error}
        return entry | {key: value for key, value in found.items() if value}

    def file_content(self, model: str, stages: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Returns the content of `results/<name>.json`: the entry, and per policy its summary and failed questions."""
        return {"benchmark": self.name, "model": model, "stages": list(stages), **self.to_dict(),
                "failures": self.failures, **self.summaries}  # fmt: skip

    def path(self, run_dir: Path) -> Path:
        """Returns the path of the benchmark's own result file."""
        return run_dir / "results" / f"{self.name}.json"


def _with_prompt(benchmark: Benchmark, question: Question) -> Question:
    text = benchmark.prompt(question)
    return question if text == question.text else replace(question, text=text)
