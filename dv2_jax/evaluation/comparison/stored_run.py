"""Reads the scores and answers of a finished evaluation; texts and images stay in its files until they are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dv2_jax.config import RewardConfig, UserError
from dv2_jax.evaluation.answer_store import ANSWERS, SCORES
from dv2_jax.evaluation.record_files import host_files, read_line, read_lines
from dv2_jax.evaluation.records import AnswerInfo, ScoreRecord
from dv2_jax.evaluation.scoring import score_basis
from dv2_jax.telemetry.stage_titles import stage_title, stage_titles
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER

DEFAULT_STAGE = "evaluate"
Key = tuple[str, int]  # question id, sample


class ComparisonError(UserError):
    """Runs cannot be compared; the message names the folder, what is in it, and the fix."""


@dataclass
class BenchmarkAnswers:
    """The answers of one policy to one benchmark.

    Attributes:
        scorer: full name of the scorer, with judge and rubric.
        scores: valid scores by (question id, sample), without the replies of the judge.
        infos: facts of every stored answer, without its text.
        judged: keys of the scores for which the judge was asked; rules decided the others.
        stale: number of scores of an earlier answer or under other settings, which are left out.
    """

    name: str
    scorer: str = ""
    scores: dict[Key, ScoreRecord] = field(default_factory=dict)
    infos: dict[Key, AnswerInfo] = field(default_factory=dict)
    judged: set[Key] = field(default_factory=set)
    stale: int = 0
    _places: dict[Key, tuple[Path, int]] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """(question id, sample) of every answer, in the order of the records."""
        return list(self.infos or self.scores)

    @property
    def questions(self) -> list[str]:
        """The ids of the answered questions, in the order of the records."""
        return list(dict.fromkeys(question for question, _ in self.keys))

    @property
    def samples(self) -> int:
        """The largest number of samples of a question."""
        return 1 + max((sample for _, sample in self.keys), default=0)

    @property
    def tools(self) -> tuple[str, ...]:
        """The tools that the policy had."""
        return tuple(dict.fromkeys(tool for info in self.infos.values() for tool in info.tools))

    def record(self, key: Key) -> dict[str, Any] | None:
        """Reads the trajectory record of an answer; None if it is not stored."""
        if key not in self._places:
            return None
        return read_line(*self._places[key])

    def add_answer(self, info: AnswerInfo, path: Path, offset: int) -> None:
        """Adds the place of an answer; a later one with the same key replaces it."""
        self.infos[info.key] = replace(info, text="")
        self._places[info.key] = path, offset


@dataclass
class ComparedRun:
    """One policy of one run directory. `results` and `config` are its stored files, empty where missing."""

    directory: Path
    stage: str
    title: str
    benchmarks: dict[str, BenchmarkAnswers]
    results: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        """The folder of the images of the records."""
        return self.directory / ANSWERS / IMAGE_FOLDER

    def table_row(self, benchmark: str) -> dict[str, Any] | None:
        """Returns the row `overall` of the run's own table."""
        rows = self.results.get("benchmarks", {}).get(benchmark, {}).get("rows", {}).get(self.stage, ())
        return next((row for row in rows if row["name"] == "overall"), None)


def open_run(spec: str, stage: str = "", scorer: str = "") -> ComparedRun:
    """Opens `RUN_DIR`, or `RUN_DIR@STAGE` for one of its policies.

    Args:
        stage: name of the policy; empty: the one of `model.init`.
        scorer: `official` or `deepeyesv2`; empty: the first of the run.

    Raises:
        ComparisonError: there is no such run, policy or scorer.
    """
    directory = Path(spec)
    if not directory.is_dir() and "@" in spec:
        folder, _, stage = spec.rpartition("@")
        directory = Path(folder)
    if not directory.is_dir():
        raise ComparisonError(f"{directory}: no such run directory")
    names = sorted({path.stem for path in (directory / SCORES).rglob("*.jsonl")})
    if not names:
        raise ComparisonError(
            f"{directory}: no scores/*.jsonl; give the run directory of a finished python -m dv2_jax.evaluate"
        )
    stages = list(dict.fromkeys(name.partition("@")[0] for name in names))
    stage = stage or (DEFAULT_STAGE if DEFAULT_STAGE in stages else stages[0] if len(stages) == 1 else "")
    if stage not in stages:
        raise ComparisonError(
            f"{directory}: no policy {stage!r}; it has {', '.join(stages)} (RUN_DIR@NAME chooses one)"
        )
    config, results = _json(directory / "config.json"), _json(directory / "results.json")
    wanted = scorer or next(iter(config.get("eval", {}).get("scorers", ())), "")
    benchmarks: dict[str, BenchmarkAnswers] = {}
    for name in (name for name in names if name.partition("@")[0] == stage):
        for part in _read(directory, name, wanted, _reward_settings(config)):
            benchmarks[part.name] = part
    if not any(part.scores for part in benchmarks.values()):
        raise ComparisonError(
            f"{directory}: no score by {wanted!r} for {stage!r}; --scorer=NAME chooses another scorer"
        )
    title = stage_title(stage, stage_titles(results)) if stage != DEFAULT_STAGE else ""
    name = directory.resolve().name
    return ComparedRun(directory, stage, f"{name}, {title}" if title else name, benchmarks, results, config)


def distinct_titles(runs: list[ComparedRun]) -> list[ComparedRun]:
    """Gives runs with the same title their paths as titles."""
    counts = Counter(run.title for run in runs)
    return [
        replace(run, title=f"{run.directory}, {run.stage}") if counts[run.title] > 1 else run for run in runs
    ]  # the same policy of the same run keeps its title: comparing it with itself shows no difference


def _read(directory: Path, name: str, scorer: str, settings: RewardConfig | None) -> list[BenchmarkAnswers]:
    """Reads the files of one policy; usually they contain one benchmark."""
    found: dict[str, BenchmarkAnswers] = {}
    newest: dict[tuple[str, Key], float] = {}
    for path in host_files(directory / ANSWERS, name):
        for offset, line in read_lines(path):
            if "answer" not in line:
                continue
            info = AnswerInfo.from_dict(line["answer"])
            time = line.get("time") or 0.0
            if time >= newest.get((info.benchmark, info.key), 0.0):
                newest[info.benchmark, info.key] = time
                found.setdefault(info.benchmark, BenchmarkAnswers(info.benchmark)).add_answer(info, path, offset)
    by_scorer: dict[tuple[str, str], dict[Key, ScoreRecord]] = {}
    judged: dict[tuple[str, str], set[Key]] = {}
    for path in host_files(directory / SCORES, name):
        for _, line in read_lines(path):
            record = ScoreRecord.from_dict(line)
            if not scorer or record.scorer.partition("+")[0] == scorer:
                key = record.question_id, record.sample
                asked = judged.setdefault((record.benchmark, record.scorer), set())
                (asked.add if record.judge else asked.discard)(key)
                scores = by_scorer.pop((record.benchmark, record.scorer), {})
                scores[key] = replace(record, judge=())
                by_scorer[record.benchmark, record.scorer] = scores  # last: the scorer that was used last
    for (benchmark, full_name), scores in by_scorer.items():
        part = found.setdefault(benchmark, BenchmarkAnswers(benchmark))
        current = {key: record for key, record in scores.items() if _is_valid(record, part)}
        part.scorer, part.scores = full_name, _of_current_answers(current, part, settings)
        part.stale = len(current) - len(part.scores)
        part.judged = judged[benchmark, full_name] & part.scores.keys()
    return list(found.values())


def _of_current_answers(
    scores: Mapping[Key, ScoreRecord], part: BenchmarkAnswers, settings: RewardConfig | None
) -> dict[Key, ScoreRecord]:
    """Leaves out the scores whose `basis` is not that of the stored answer under the settings of the run.

    An interrupted run has such scores: the answer, or `reward`, has changed since. If no score has that basis, it cannot be
    computed again (another version has stored it), and all are kept.
    """
    if settings is None:
        return dict(scores)
    own = {
        key: record
        for key, record in scores.items()
        if not record.basis or key not in part.infos or record.basis == score_basis(part.infos[key], settings)
    }
    return own or dict(scores)


def _reward_settings(config: Mapping[str, Any]) -> RewardConfig | None:
    """Returns the settings of scores of a stored configuration; None for one of another version."""
    try:
        stored = {name: tuple(value) if isinstance(value, list) else value for name, value in config["reward"].items()}
        return RewardConfig(**stored)
    except (KeyError, TypeError):
        return None


def _is_valid(record: ScoreRecord, part: BenchmarkAnswers) -> bool:
    """Returns False for the score of an earlier attempt, which is no longer the answer."""
    info = part.infos.get((record.question_id, record.sample))
    return info is None or (info.attempt == record.answer_attempt and not info.failure)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
