"""Reads the records of a run for analysis: one small row per answer, without token ids and texts.

A row needs a few hundred bytes, so that runs of any size are analyzed in little memory. Runs of every version are read:
records without a field `answer` or a folder `scores/` are classified by their reward parts, as they were scored.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dv2_jax.agent.tools.tool_registry import find_tool, use_titles
from dv2_jax.evaluation.analysis.error_classes import error_class
from dv2_jax.report.page import tools_of_run
from dv2_jax.report.sections import metric_rows
from dv2_jax.telemetry.stage_titles import FINAL, INITIAL, TITLES, stage_titles, trajectory_title
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER, read_trajectories, stages

TRAIN = "train"  # the stage of RL steps
CORRECT, WRONG, FAILED, UNDECIDED, UNSCORED = "correct", "wrong", "failed", "undecided", "unscored"


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer, as the analysis needs it.

    Attributes:
        stage: name of the policy, as in the names of files; `train` for RL steps.
        outcome: correct, wrong, failed, undecided, or unscored.
        value: score from 0 to 1; None without a verdict.
        cluster: answers with the same cluster are correlated; the question where the benchmark names none.
        kinds: executed calls per class of use.
        refused: number of executed calls that were refused.
        tokens: number of sampled tokens.
        error: class of the error (`error_classes.CLASSES`); empty unless the outcome is wrong.
        num_tools: number of tools that the policy had; None: the record does not say.
    """

    stage: str
    benchmark: str
    step: int | None
    question_id: str
    sample: int
    skill: str
    text: str
    outcome: str
    value: float | None
    cluster: str
    kinds: Mapping[str, int]
    calls: int
    refused: int
    tokens: int
    reward: float | None
    error: str = ""
    num_tools: int | None = None

    @property
    def is_scored(self) -> bool:
        """True if the answer has a verdict."""
        return self.value is not None


@dataclass(frozen=True)
class AnalyzedRun:
    """The rows of a run, and what its other files say.

    Attributes:
        titles: title of each policy by its name, in display order.
        metrics: rows of `metrics.jsonl`, one per RL step.
        kind_titles: title of each class of use of the run's tools, in display order.
    """

    directory: Path
    rows: Sequence[AnswerRow]
    titles: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    kind_titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """The largest number of samples of a question."""
        return 1 + max((row.sample for row in self.rows), default=0)

    def evaluations(self) -> dict[tuple[str, str], list[AnswerRow]]:
        """Returns the rows of evaluations by (benchmark, policy), policies in display order."""
        order = list(self.titles)
        found: dict[tuple[str, str], list[AnswerRow]] = {}
        for row in self.rows:
            if row.stage != TRAIN:
                found.setdefault((row.benchmark, row.stage), []).append(row)
        benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in found))

        def place(key: tuple[str, str]) -> tuple[int, int]:
            return benchmarks.index(key[0]), order.index(key[1]) if key[1] in order else len(order)

        return {key: found[key] for key in sorted(found, key=place)}

    def steps(self) -> dict[int, list[AnswerRow]]:
        """Returns the stored rows of RL training by step."""
        found: dict[int, list[AnswerRow]] = {}
        for row in self.rows:
            if row.stage == TRAIN and row.step is not None:
                found.setdefault(row.step, []).append(row)
        return dict(sorted(found.items()))

    def title(self, stage: str) -> str:
        """Returns the title of a policy: that of the run's tables, if it has one."""
        given = self.titles.get(stage, "")
        return given if given not in ("", TITLES.get(stage)) else trajectory_title(stage, self.titles)


def has_tools(rows: Sequence[AnswerRow]) -> bool:
    """Returns False for a policy without tools: it had none, or every call was refused."""
    calls = sum(row.calls for row in rows)
    if calls:
        return calls > sum(row.refused for row in rows)
    return not any(row.num_tools == 0 or is_without_tools(row.stage) for row in rows)


def is_without_tools(stage: str) -> bool:
    """Returns True for the name of a policy that was evaluated without its tools (baseline, or tool set `none`)."""
    return stage == "no_tools" or stage.endswith("-none")


def read_run(directory: str | Path) -> AnalyzedRun:
    """Reads a run directory; one without trajectories has no rows.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such run directory")
    config = read_json(directory / "config.json")
    summary = read_json(directory / "summary.json") or read_json(directory / "results.json")
    folder = directory / "trajectories"
    kind_titles = use_titles(tools_of_run(config))  # also registers tools of the user's own
    rows: list[AnswerRow] = []
    if folder.is_dir():
        first = _first_benchmark(summary)
        scorer = (config.get("eval", {}).get("scorers") or [""])[0]
        labels = read_labels(directory)
        for name in record_names(folder):
            scores = read_scores(directory / "scores", name, scorer)
            stage, _, benchmark = name.partition("@")
            place = benchmark or ("" if stage == TRAIN else first)
            found = [_row(record, stage, place, scores, labels, folder) for record in read_records(folder, name)]
            rows += found if stage == TRAIN else sorted(found, key=_order)
    return AnalyzedRun(
        directory, rows, stage_titles(summary), config, metric_rows(directory / "metrics.jsonl"), kind_titles
    )


def _order(row: AnswerRow) -> tuple[list[tuple[int, int, str]], int]:
    """Returns the key by which answers are sorted: records are in the order in which answers ended, which chance decides.

    Numbers in ids are compared as numbers: `q9` is before `q10`.
    """
    parts = re.split(r"(\d+)", row.question_id)
    return [(int(i % 2 == 0), 0 if i % 2 == 0 else int(part), part) for i, part in enumerate(parts)], row.sample


def _first_benchmark(summary: Mapping[str, Any]) -> str:
    """Returns the benchmark of files without a suffix: the embedded tasks, or else the first of the run."""
    benchmarks = list(summary.get("benchmarks", {}))
    if not benchmarks:
        return "held-out" if INITIAL in summary or FINAL in summary else "embedded"
    return "embedded" if "embedded" in benchmarks else benchmarks[0]


def record_names(folder: Path) -> list[str]:
    """Returns the names of record files, also of those that only other hosts have written."""
    return sorted({*stages(folder), *(path.stem for path in folder.glob("host-*/*.jsonl"))})


def read_records(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a stage by all hosts; of several with the same id and step, the newest."""
    for part in (folder, *sorted(folder.glob("host-*"))):
        if (part / f"{name}.jsonl").is_file():
            yield from read_trajectories(part, name)


def read_scores(folder: Path, name: str, scorer: str) -> dict[tuple[str, int], dict[str, Any]] | None:
    """Returns the score lines of one scorer by (question id, sample), the newest of each; None without a file.

    `scorer` is a name without judge and rubric; the first one found counts if it is empty.
    """
    paths = [
        path for path in (folder / f"{name}.jsonl", *sorted(folder.glob(f"host-*/{name}.jsonl"))) if path.is_file()
    ]
    if not paths:
        return None
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in paths:
        with open(path, "rb") as file:
            for raw in file:
                try:
                    line = json.loads(raw)
                except ValueError:  # incomplete line of a killed run
                    continue
                own = line.get("scorer", "").split("+")[0]
                scorer = scorer or own
                if own == scorer:
                    found[line["question_id"], line.get("sample", 0)] = line
    return found


def _row(
    record: Mapping[str, Any],
    stage: str,
    benchmark: str,
    scores: Mapping[tuple[str, int], Mapping[str, Any]] | None,
    labels: Mapping[tuple[str, str, str, int], str],
    folder: Path,
) -> AnswerRow:
    answer, question = record.get("answer") or {}, record["question"]
    benchmark = answer.get("benchmark", benchmark)
    question_id, sample = answer.get("question_id", question["id"]), answer.get("sample", 0)
    line = None if scores is None else scores.get((question_id, sample), {})
    outcome, value, cluster = verdict(record, line)
    key = (stage, benchmark, question_id, sample)
    error = labels.get(key) or error_class(record, folder / IMAGE_FOLDER) if outcome == WRONG else ""
    reward = (line or {}).get("reward")
    return AnswerRow(
        stage=stage,
        benchmark=benchmark,
        step=record.get("step"),
        question_id=question_id,
        sample=sample,
        skill=question["skill"],
        text=" ".join(question["text"].replace("<image>", "").split())[:160],
        outcome=outcome,
        value=value,
        cluster=cluster or question_id,
        kinds=call_kinds(record),
        calls=sum(bool(turn["status"]) for turn in record["turns"]),
        refused=sum(turn["status"] == "refused" for turn in record["turns"]),
        tokens=answer.get("completion_tokens") or len(record["logprobs"]),
        reward=record.get("reward") if reward is None else reward,
        error=error,
        num_tools=len(answer["tools"]) if "tools" in answer else None,
    )


def verdict(record: Mapping[str, Any], line: Mapping[str, Any] | None) -> tuple[str, float | None, str]:
    """Returns outcome, value and cluster of an answer.

    Args:
        line: its score line; None for a run without score files, an empty one if it has not been scored.
    """
    answer = record.get("answer") or {}
    if answer.get("failure") or record.get("dropped"):
        return FAILED, None, ""
    if line is not None:
        score = line.get("score")
        if score is None or line.get("answer_attempt", 1) != answer.get("attempt", 1):
            return UNSCORED, None, ""
        value, cluster = score.get("value"), score.get("cluster", "")
        if value is None:
            return (UNDECIDED if score.get("is_undecided") else FAILED), None, cluster
        return (CORRECT if value == 1 else WRONG), float(value), cluster
    accuracy = record.get("reward_parts", {}).get("accuracy")
    if accuracy is None:
        return UNSCORED, None, ""
    return (CORRECT, 1.0, "") if accuracy > 0.5 else (WRONG, 0.0, "")


def call_kinds(record: Mapping[str, Any]) -> dict[str, int]:
    """Returns the executed calls per class of use: as counted when they were made, or else by the tools' own rules.

    A tool that is not registered here counts under its name.
    """
    stored = (record.get("answer") or {}).get("tool_counts")
    if stored is not None:
        return {kind: count for kind, count in stored.items() if count}
    counts: Counter[str] = Counter()
    for turn in record["turns"]:
        if turn["status"]:
            tool = find_tool(turn["kind"])
            counts[turn["kind"] if tool is None else tool.classify(turn["text"], len(turn["pictures"]))] += 1
    return dict(counts)


def read_labels(directory: Path) -> dict[tuple[str, str, str, int], str]:
    """Reads `error_labels.csv` (columns stage, benchmark, question_id, sample, label), in which people name error classes."""
    import csv

    path = directory / "error_labels.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (row["stage"], row["benchmark"], row["question_id"], int(row.get("sample") or 0)): row["label"]
            for row in csv.DictReader(file)
            if row.get("label")
        }


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one if the file is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
