"""Runs an evaluation: every stage on every benchmark, continuing from what is stored, with results after each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.evaluation.answerers.answerer import Answerer
from dv2_jax.evaluation.benchmark_run import BenchmarkRun
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.human_labels import HumanLabel, label_agreement
from dv2_jax.evaluation.records import AnswerInfo
from dv2_jax.evaluation.result_files import (
    disagreement,
    disagreement_rows,
    protocol_line,
    table_csv,
    usage,
    write_lines,
)
from dv2_jax.evaluation.run_budget import Budget
from dv2_jax.evaluation.sample_rows import sample_rows
from dv2_jax.evaluation.scoring import RecordingJudge
from dv2_jax.evaluation.stage_plan import EVALUATE, Stage
from dv2_jax.evaluation.stage_run import Outcome, StageRun
from dv2_jax.evaluation.summary import OVERALL, aggregate
from dv2_jax.files import atomic_write
from dv2_jax.parallel import distributed
from dv2_jax.parallel.outage import raise_outage_together
from dv2_jax.rollout.outcome import TrajectoryStats
from dv2_jax.telemetry.progress import Display
from dv2_jax.telemetry.stage_titles import benchmark_stage

Price = Callable[[AnswerInfo], "float | None"]
MakeAnswerer = Callable[[StageRun], Answerer]
EMBEDDED = "embedded"  # its record files are named by the policy alone


@dataclass
class Evaluator:
    """The stages of an evaluation on its benchmarks.

    Attributes:
        weights: fingerprint of the weights of each `model.init`.
        price: returns the cost of an answer; None: unknown.
        labels: verdicts of humans, of `eval.human_labels`.
    """

    config: Config
    run_dir: Path
    stages: list[Stage]
    parts: list[BenchmarkRun]
    tokenizer: Tokenizer
    display: Display
    budget: Budget
    weights: dict[str, str] = field(default_factory=dict)
    price: Price = lambda info: None
    make_judge: Callable[[Question], RecordingJudge] | None = None
    labels: Sequence[HumanLabel] = ()

    def __post_init__(self) -> None:
        self.runs = [self._run(stage, part) for stage in self.stages for part in self.parts]
        self.done: list[Stage] = []  # stages with results

    def _run(self, stage: Stage, part: BenchmarkRun) -> StageRun:
        name = benchmark_stage(stage.name, part.name, is_first=part.name == EMBEDDED)
        weights = self.weights.get(stage.init, "")
        return StageRun(stage, part, self.config, self.run_dir, name, stage.init, weights, self.tokenizer)

    def prepare(self, *, retry_failed: bool = False, any_weights: bool = False) -> None:
        """Reads the stored answers and finds what is missing; says which stored answers cannot be used, and why.

        Arguments are those of `StageRun.prepare`. Collective.
        """
        for run in self.runs:
            run.prepare(retry_failed=retry_failed, any_weights=any_weights)
        distributed.barrier("records are read")  # before any host appends to them
        for run in self.runs:
            changes: Counter[str] = Counter()
            for counted in distributed.allgather_json(dict(run.changes)):
                changes.update(counted)
            for change, count in changes.items():
                self.display.line(
                    f"{run.stage.title}, {run.part.name}: {count:,} stored answers are not used, since {change}"
                )
            for stored in run.store.answers.values():
                self.budget.add(self.price(stored.info))

    def is_complete(self) -> bool:
        """Tests if nothing is missing on any host. Collective."""
        return not distributed.any_process(any(run.missing for run in self.runs))

    def evaluate(self, make_answerer: MakeAnswerer | None = None, *, rejudge: bool = False) -> None:
        """Scores and answers stage by stage, and stores the results of each. Collective.

        Args:
            make_answerer: called for a stage of which answers are missing; None: nothing is answered.
            rejudge: score every stored answer again.

        Raises:
            ServiceOutage: a service gave no results for too long, or a record cannot be written.
        """
        for run in self.runs:
            scorer = run.scorer(self.make_judge)
            try:
                with raise_outage_together():
                    run.score_stored(scorer, again=rejudge)
                missing = distributed.any_process(bool(run.missing))
                if missing and make_answerer is not None and not self._stops():
                    with raise_outage_together():
                        self._answer(run, make_answerer(run), scorer)
                self._collect(run, run.outcomes(scorer))
            finally:
                scorer.close()
                run.store.close()

    def _stops(self) -> bool:
        return distributed.any_process(self.budget.is_reached())

    def _answer(self, run: StageRun, answerer: Answerer, scorer: Any) -> None:
        title = f"{run.stage.title}: {run.part.name}"
        with self.display.track(title, len(run.missing), unit="answers") as bar:

            def on_answer(info: AnswerInfo) -> None:
                self.budget.add(self.price(info))
                bar.advance()

            run.answer(answerer, scorer, self.budget.is_reached, on_answer)

    def _collect(self, run: StageRun, own: list[Outcome | None]) -> None:
        """Gathers the outcomes of all hosts, makes the tables of a stage on a benchmark, and stores them."""
        found = [outcome for outcome in gather_outcomes(own) if outcome is not None]
        part, stage = run.part, run.stage.name
        part.unanswered[stage] = len(part.ids) * self.config.eval.samples - len(found)
        if not found:
            return
        overall, skills = aggregate([outcome.stats for outcome in found])
        part.summaries[stage] = {OVERALL: overall.to_dict()} | {name: skill.to_dict() for name, skill in skills.items()}
        scores = {name: [outcome.scores[name] for outcome in found] for name in self.config.eval.scorers}
        part.aggregate(stage, scores)
        for name, rows in part.rows.items():
            if stage in rows and rows[stage]:
                rows[stage] += sample_rows(scores[name], self.config.eval.samples)
        infos = [outcome.info for outcome in found]
        first = scores[self.config.eval.scorers[0]]
        correct = sum(score.outcome == "correct" for score in first)
        part.usage[stage] = usage(infos, [self.price(info) for info in infos], correct)
        part.protocols[stage] = protocol_line(
            self.config, part.benchmark, run.tools, len(part.ids), refuses_tools=run.stage.refuses_tools
        )
        self._compare_scorers(part, stage, scores, infos)
        finals = {info.key: info.final for info in infos}
        agreement = label_agreement(self.labels, part.name, stage, first, finals, is_main=stage == EVALUATE)
        part.human_labels |= {} if agreement is None else {stage: agreement}
        if run.stage not in self.done:
            self.done.append(run.stage)
        if distributed.is_main():
            self._write(part)

    def _compare_scorers(
        self, part: BenchmarkRun, stage: str, scores: dict[str, list[Score]], infos: list[AnswerInfo]
    ) -> None:
        first, *others = scores
        for other in others:
            part.disagreements.setdefault(stage, {})[other] = disagreement(scores[first], scores[other])
            part.examples += disagreement_rows(stage, (first, other), scores[first], scores[other], infos)

    def _write(self, part: BenchmarkRun) -> None:
        path = part.path(self.run_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        stages = [stage.to_dict() for stage in self.done]
        content = part.file_content(self.stages[-1].init, stages)
        atomic_write(path, json.dumps(content, indent=2) + "\n", durable=True)
        write_lines(path.with_suffix(".disagreements.jsonl"), part.examples)
        entries = {entry.name: entry.to_dict() for entry in self.parts if entry.rows}
        atomic_write(path.with_name("table.csv"), table_csv(entries, self.config.eval.scorers[0]))

    def results(self) -> dict[str, Any]:
        """Returns the entries of `results.json`. The keys of a single benchmark are those of the first."""
        first = first_part(self.parts)
        guessing = {} if first.guessing is None else {"guessing": first.guessing}
        return {
            "questions": len(first.ids),
            "stages": [stage.to_dict() for stage in self.done],
            **first.summaries,
            "benchmarks": {part.name: part.to_dict() for part in self.parts},
            **guessing,
        }

    def failed_too_often(self) -> list[str]:
        """Returns a sentence for each benchmark of which more than `eval.max_failed_fraction` of the answers failed."""
        limit, found = self.config.eval.max_failed_fraction, []
        for part in self.parts:
            for stage, count in part.failed.items():
                share = count / max(1, part.usage[stage]["answers"])
                if share > limit:
                    found.append(
                        f"{part.name}, {stage}: {count:,} answers failed ({share:.1%}), more than eval.max_failed_fraction"
                        f" = {limit:.1%}"
                    )
        return found


def first_part(parts: list[BenchmarkRun]) -> BenchmarkRun:
    """Returns the benchmark whose results have the keys of an evaluation of only one: the embedded tasks, or the first."""
    return next((part for part in parts if part.name == EMBEDDED), parts[0])


def gather_outcomes(own: list[Outcome | None]) -> list[Outcome | None]:
    """All-gathers the outcomes of every host's shard, in the order of questions and samples. Collective."""
    if distributed.process_count() == 1:
        return own
    packed = [None if outcome is None else _pack(outcome) for outcome in own]
    return [None if fields is None else _unpack(fields) for fields in distributed.allgather_shards(packed)]


def _pack(outcome: Outcome) -> dict[str, Any]:
    scores = {name: asdict(score) for name, score in outcome.scores.items()}
    return {"stats": asdict(outcome.stats), "scores": scores, "info": outcome.info.to_dict()}


def _unpack(fields: dict[str, Any]) -> Outcome:
    scores = {name: Score(**values) for name, values in fields["scores"].items()}
    return Outcome(TrajectoryStats(**fields["stats"]), scores, AnswerInfo.from_dict(fields["info"]))
