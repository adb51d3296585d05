"""The table that `python -m dv2_jax.evaluate --plan` prints: what a run would do, and about how much it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from dv2_jax.config import Config
from dv2_jax.evaluation.evaluator import Evaluator, Price
from dv2_jax.evaluation.records import AnswerInfo
from dv2_jax.evaluation.stage_run import StageRun
from dv2_jax.evaluation.statistics import smallest_visible_difference
from dv2_jax.telemetry.progress import duration

HEADINGS = ("policy", "benchmark", "answers", "stored", "failed", "to get", "tokens", "time", "cost")


@dataclass(frozen=True)
class PlannedAnswers:
    """The numbers of one stage on one benchmark. `tokens`, `seconds` and `cost` are estimates; None: unknown.

    `answers` is the number of rows times samples; `failed` answers are attempted again, and are part of `to_get`.
    """

    policy: str
    benchmark: str
    answers: int
    stored: int
    failed: int
    to_get: int
    tokens: float | None
    seconds: float | None
    cost: float | None


def plan(evaluator: Evaluator) -> list[PlannedAnswers]:
    """Returns the planned answers of every stage and benchmark, after `Evaluator.prepare`.

    Estimates are means of stored answers: of the same stage and benchmark, else of the same stage, else of any.
    """
    known = {id(run): [stored.info for stored in run.store.answers.values()] for run in evaluator.runs}
    everything = [info for infos in known.values() for info in infos]
    planned = []
    for run in evaluator.runs:
        same_stage = [info for other in evaluator.runs if other.stage == run.stage for info in known[id(other)]]
        examples = known[id(run)] or same_stage or everything
        planned.append(_planned(run, examples, evaluator.config, evaluator.price))
    return planned


def _planned(run: StageRun, examples: Sequence[AnswerInfo], config: Config, price: Price) -> PlannedAnswers:
    retried = sum(entry.attempt > 1 for entry in run.missing)
    missing, total = len(run.missing), len(run.own_keys)
    found = PlannedAnswers(run.stage.title, run.part.name, total, total - missing, retried, missing, 0, 0, 0)
    if not missing:
        return found
    examples = [info for info in examples if not info.failure]
    if not examples:
        return replace(found, tokens=None, seconds=None, cost=None)
    each = missing / len(examples)
    costs = [price(info) for info in examples]
    parallel = config.eval.endpoint_concurrency if config.eval.endpoint else config.engine.slots
    return replace(
        found,
        tokens=each * sum(info.prompt_tokens + info.completion_tokens for info in examples),
        seconds=each * sum(info.seconds for info in examples) / max(1, min(parallel, missing)),
        cost=None if any(cost is None for cost in costs) else each * sum(cost or 0.0 for cost in costs),
    )


def plan_table(evaluator: Evaluator) -> Table:
    """Returns the plan as a table with a line of totals; estimates without stored answers are `unknown`."""
    planned = plan(evaluator)
    table = Table(
        header_style="bold",
        caption="estimates from stored answers; time at full concurrency, without compilation\n"
        + visible_differences(evaluator),
        caption_justify="left",
    )
    for heading in HEADINGS:
        is_text = heading in ("policy", "benchmark")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in planned:
        table.add_row(row.policy, row.benchmark, *_cells(row))
    table.add_section()
    totals = [[getattr(row, name) for row in planned] for name in ("tokens", "seconds", "cost")]
    sums = [None if any(value is None for value in values) else sum(values) for values in totals]
    counts = [sum(getattr(row, name) for row in planned) for name in ("answers", "stored", "failed", "to_get")]
    table.add_row("total", "", *(f"{count:,}" for count in counts), *_estimates(*sums), style="bold")
    return table


def visible_differences(evaluator: Evaluator) -> str:
    """Returns the smallest difference to another run that each benchmark can show, at 20 % discordance."""
    rows = {part.name: smallest_visible_difference(len(part.ids)) for part in evaluator.parts}
    points = [f"{name} {'none' if found is None else f'{100 * found:.1f}'}" for name, found in rows.items()]
    return f"smallest visible differences to another run, in points: {', '.join(points)}"


def _cells(row: PlannedAnswers) -> list[str]:
    counts = [row.answers, row.stored, row.failed, row.to_get]
    return [*(f"{count:,}" for count in counts), *_estimates(row.tokens, row.seconds, row.cost)]


def _estimates(tokens: float | None, seconds: float | None, cost: float | None) -> list[str]:
    return [
        "unknown" if tokens is None else f"{tokens:,.0f}",
        "unknown" if seconds is None else duration(seconds),
        "unknown" if cost is None else f"{cost:,.4g}",
    ]
