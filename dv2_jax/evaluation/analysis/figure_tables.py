"""Computes the tables behind the figures; page, PNG and CSV show the same rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dv2_jax.agent.tool_use import shares
from dv2_jax.evaluation.analysis.answer_rows import FAILED, UNDECIDED, WRONG, AnalyzedRun, AnswerRow, has_tools
from dv2_jax.evaluation.analysis.error_classes import CLASSES, HUMAN
from dv2_jax.evaluation.analysis.paper_values import MEASURED, PRINTED, published_rate, published_share
from dv2_jax.evaluation.statistics import clustered_interval, mean

EXAMPLES = 3  # questions shown per class of errors
STEP_METRICS = (
    # column, key in metrics.jsonl, attribute of a row
    ("response tokens", "response_tokens", "tokens"),
    ("reward", "reward", "reward"),
    ("tool calls", "tool_calls", "calls"),
)


@dataclass(frozen=True)
class FigureTable:
    """The rows of one figure. `name` names its files; cells are text, numbers or None."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def dicts(self) -> list[dict[str, Any]]:
        """Returns the rows by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def tool_kinds_table(run: AnalyzedRun) -> FigureTable:
    """Computes Figure 6: the share of every class of use among the calls, per benchmark and policy."""
    rows = []
    for (benchmark, stage), answers in run.evaluations().items():
        counts = kind_counts(answers, run.kind_titles)
        if not has_tools(answers) or not sum(counts.values()):
            continue
        for kind, share in shares(counts).items():
            title = run.kind_titles.get(kind, kind)
            paper = published_share(benchmark, title) or (None, None)
            rows.append((benchmark, run.title(stage), kind, title, counts[kind], share, *paper))
    columns = ("benchmark", "policy", "kind", "title", "calls", "share", "paper cold start %", "paper RL %")
    note = f"Shares of the executed calls of each policy. The paper's values are {MEASURED}."
    return FigureTable("figure6_tool_kinds", "Figure 6: what tools are used for", columns, tuple(rows), note)


def tool_rate_table(run: AnalyzedRun) -> FigureTable:
    """Computes Figure 7: the share of answers with at least one call, per benchmark and policy."""
    rows = []
    for (benchmark, stage), answers in run.evaluations().items():
        counted = [answer for answer in answers if answer.outcome != FAILED]
        if not counted or not has_tools(answers):
            continue
        called = [float(answer.calls > 0) for answer in counted]
        low, high = clustered_interval(called, [answer.cluster for answer in counted])
        paper = published_rate(benchmark) or (None, None)
        rows.append((benchmark, run.title(stage), len(called), int(sum(called)), mean(called), low, high, *paper))
    columns = (
        "benchmark", "policy", "answers", "with a call", "share", "interval low", "interval high",
        "paper cold start %", "paper RL %",
    )  # fmt: skip
    note = f"95 % intervals. The paper's values are {PRINTED}; it has one HRBench."
    return FigureTable("figure7_tool_rate", "Figure 7: answers with at least one call", columns, tuple(rows), note)


def step_table(run: AnalyzedRun) -> FigureTable:
    """Computes Figure 8: mean and standard deviation of response length, reward and tool calls per RL step.

    Where `metrics.jsonl` has both, they are those of all trajectories of a step; else those of the stored ones. An
    evaluation has no steps: there the evaluated policies take their place, in the order of its tables.
    """
    stored, logged = run.steps(), {row["step"]: row for row in run.metrics}
    rows = []
    for step in sorted({*stored, *(step for step, row in logged.items() if "reward_std" in row)}):
        metrics, answers = logged.get(step, {}), [row for row in stored.get(step, ()) if row.outcome != FAILED]
        if all(f"{key}_std" in metrics and key in metrics for _, key, _ in STEP_METRICS):
            numbers = [metrics[name] for _, key, _ in STEP_METRICS for name in (key, f"{key}_std")]
            rows.append((step, int(metrics.get("n", 0)), "all", "", *numbers))
        elif answers:
            rows.append((step, len(answers), "stored", "", *_step_numbers(answers)))
    title = "Figure 8: RL steps, mean ± standard deviation"
    if not rows:
        title = "Figure 8: evaluated policies, mean ± standard deviation"
        for number, (stage, answers) in enumerate(_answers_with_tools(run).items()):
            rows.append((number, len(answers), "evaluated", run.title(stage), *_step_numbers(answers)))
    columns = (
        "step",
        "trajectories",
        "source",
        "policy",
        *(f"{name} {part}" for name, _, _ in STEP_METRICS for part in ("mean", "std")),
    )
    return FigureTable(
        "figure8_steps",
        title,
        columns,
        tuple(rows),
        'Over all trajectories of a step; with source "stored", over those that rl.keep_trajectories kept; with source'
        ' "evaluated", over all answers of a policy, of which "step" is the position.',
    )


def _step_numbers(answers: Sequence[AnswerRow]) -> list[float | None]:
    return [number for _, _, name in STEP_METRICS for number in _mean_std(getattr(a, name) for a in answers)]


def _answers_with_tools(run: AnalyzedRun) -> dict[str, list[AnswerRow]]:
    """Returns the answers of every policy with tools over all benchmarks, failed ones aside."""
    found: dict[str, list[AnswerRow]] = {}
    for (_, stage), answers in run.evaluations().items():
        counted = [answer for answer in answers if answer.outcome != FAILED]
        if counted and has_tools(answers):
            found.setdefault(stage, []).extend(counted)
    return found


def step_kinds_table(run: AnalyzedRun) -> FigureTable:
    """Computes Figure 10: the share of every class of use among the calls of each RL step."""
    titles, prefix = run.kind_titles, "tool_kinds/"
    logged: dict[int, dict[str, float]] = {}
    for row in run.metrics:
        found = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
        if found:
            logged[row["step"]] = found
    source = "all" if logged else "stored"
    by_step = logged or {step: shares(kind_counts(answers, titles)) for step, answers in run.steps().items()}
    kinds = [*titles, *dict.fromkeys(kind for row in by_step.values() for kind in row if kind not in titles)]
    rows = [
        (step, source, kind, titles.get(kind, kind), found[kind])
        for step, found in sorted(by_step.items())
        if any(found.values())
        for kind in kinds
        if kind in found
    ]
    columns = ("step", "source", "kind", "title", "share")
    return FigureTable("figure10_step_kinds", "Figure 10: what tools are used for, per RL step", columns, tuple(rows))


def error_table(run: AnalyzedRun) -> FigureTable:
    """Computes the classes of errors of every policy with tools; the counts add up to its wrong answers."""
    rows = []
    for (benchmark, stage), answers in run.evaluations().items():
        if not has_tools(answers):
            continue
        wrong = [answer for answer in answers if answer.outcome == WRONG]
        counts = Counter(answer.error for answer in wrong)
        for name in [*CLASSES, *(label for label in counts if label not in CLASSES)]:
            if not counts[name]:
                continue
            known = CLASSES.get(name)
            examples = [answer for answer in wrong if answer.error == name][:EXAMPLES]
            ids = " ".join(dict.fromkeys(answer.question_id for answer in examples))
            group, title = (known.group, known.title) if known else (CLASSES[HUMAN].group, name)
            rows.append((benchmark, run.title(stage), name, group, title, counts[name], counts[name] / len(wrong), ids))
    columns = ("benchmark", "policy", "class", "type", "title", "answers", "share of wrong", "examples")
    return FigureTable("error_classes", "Errors by class", columns, tuple(rows))


def error_cases_table(run: AnalyzedRun) -> FigureTable:
    """Lists every wrong answer of these policies with its class, for people who label errors; no page shows it."""
    rows = [
        (row.stage, row.benchmark, row.question_id, row.sample, row.error, row.text, "")
        for answers in run.evaluations().values()
        if has_tools(answers)
        for row in answers
        if row.outcome == WRONG
    ]
    columns = ("stage", "benchmark", "question_id", "sample", "class", "question", "label")
    return FigureTable("error_cases", "Wrong answers", columns, tuple(rows))


def outcome_counts(answers: Sequence[AnswerRow]) -> dict[str, int]:
    """Returns the number of answers without a verdict: failed and undecided ones."""
    counts = Counter(answer.outcome for answer in answers)
    return {outcome: counts[outcome] for outcome in (FAILED, UNDECIDED)}


def kind_counts(answers: Iterable[AnswerRow], order: Iterable[str] = ()) -> dict[str, int]:
    """Adds up the calls per class of use; classes of `order` first, unused ones left out."""
    total: Counter[str] = Counter()
    for answer in answers:
        if answer.outcome != FAILED:
            total.update(answer.kinds)
    known = [kind for kind in order if total[kind]]
    return {kind: total[kind] for kind in [*known, *(kind for kind in total if kind not in known and total[kind])]}


def _mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Returns mean and population standard deviation of the values that are not None."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    center = mean(known)
    return center, math.sqrt(mean([(value - center) ** 2 for value in known]))
