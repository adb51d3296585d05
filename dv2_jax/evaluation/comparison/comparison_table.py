"""Comparisons as a table on a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dv2_jax.evaluation.comparison.paired_runs import BenchmarkComparison, Effort
from dv2_jax.evaluation.comparison.stored_run import ComparedRun

HEADINGS = (
    "benchmark", "n", "both", "only A", "only B", "neither", "A", "B", "difference", "95 % interval", "p", "adjusted p",
    "visible from",
)  # fmt: skip
EFFORT_HEADINGS = (
    "answers", "prompt tokens", "sampled tokens", "seconds", "tool calls", "tokens per correct answer",
    "cost per correct answer",
)  # fmt: skip


def cells(comparison: BenchmarkComparison) -> tuple[str, ...]:
    """Formats a comparison under `HEADINGS`; differences in points."""
    counts, found = comparison.counts, comparison.difference
    shown = [comparison.benchmark, f"{counts.n:,}"]
    shown += [f"{number:,}" for number in (counts.both, counts.only_a, counts.only_b, counts.neither)]
    if found is None:
        return *shown, *["–"] * 7
    low, high = found.interval
    visible = "–" if found.smallest_visible is None else f"{100 * found.smallest_visible:.1f}"
    return (
        *shown, f"{found.mean_a:.1%}", f"{found.mean_b:.1%}", f"{100 * found.difference:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}", p_text(found.p_value), p_text(comparison.adjusted_p), visible,
    )  # fmt: skip


def p_text(p_value: float | None) -> str:
    """Formats a p-value; – for none."""
    return "–" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def effort_cells(effort: Effort) -> tuple[str, ...]:
    """Formats efforts under `EFFORT_HEADINGS`."""
    if not effort.answers:
        return ("–",) * len(EFFORT_HEADINGS)
    each = effort.tokens_per_correct
    cost = effort.cost_per_correct
    return (
        f"{effort.answers:,}", f"{effort.prompt_tokens:,.0f}", f"{effort.completion_tokens:,.0f}",
        f"{effort.seconds:.2f}", f"{effort.tool_calls:.2f}", "–" if each is None else f"{each:,.0f}",
        "–" if cost is None else f"{cost:.4g}",
    )  # fmt: skip


def notes(comparison: BenchmarkComparison) -> list[str]:
    """Returns the sentences about one comparison: verdict, visibility, questions left out, and warnings."""
    found = [f"{comparison.verdict()}; {comparison.visibility()}" if comparison.difference else comparison.verdict()]
    left_out = [
        (comparison.only_answered_a, f"answered by {comparison.a} alone"),
        (comparison.only_answered_b, f"answered by {comparison.b} alone"),
        (comparison.unscored_a, f"without a score in {comparison.a}"),
        (comparison.unscored_b, f"without a score in {comparison.b}"),
    ]
    if parts := [f"{count:,} {text}" for count, text in left_out if count]:
        found.append(f"left out: questions {', '.join(parts)}")
    if comparison.judged_a or comparison.judged_b:
        found.append(
            f"scored by the judge: {comparison.judged_a:,} questions of {comparison.a} and {comparison.judged_b:,} of"
            f" {comparison.b}, {comparison.judged_in_one:,} of them in one run alone; the others by rules"
        )
    if comparison.own_score is not None:
        found.append(str(comparison.own_score))
    if comparison.error:
        found.append(comparison.error)
    difference = comparison.difference
    if difference is not None and difference.clusters < difference.n:
        found.append(f"{difference.clusters:,} clusters of questions; test: {difference.test}")
    for run, table, own in (
        (comparison.a, comparison.table_a, difference and difference.mean_a),
        (comparison.b, comparison.table_b, difference and difference.mean_b),
    ):
        if table is not None and own is not None and abs(table - own) > 5e-4:
            found.append(
                f"the table of {run} has {table:.1%}, by the benchmark's own aggregate or over other questions; compared is"
                f" the mean over questions, {own:.1%}"
            )
    return found + [f"warning: not the same protocol: {warning}" for warning in comparison.warnings]


def count_note(comparisons: Sequence[BenchmarkComparison]) -> str:
    """Returns the sentence about the number of tests."""
    tests = sum(comparison.difference is not None for comparison in comparisons)
    if tests < 2:
        return f"{tests} test"
    return (
        f"{tests} tests: by chance alone about {0.05 * tests:.1f} have p < 0.05; adjusted p-values (Holm) account for that,"
        " and the sentences use them"
    )


def print_comparisons(
    comparisons: Sequence[BenchmarkComparison], runs: Sequence[ComparedRun], console: Console
) -> None:
    """Prints one table and its notes for every run that is compared with the first."""
    for other in runs[1:]:
        own = [comparison for comparison in comparisons if comparison.b == other.title]
        console.print(f"A = {runs[0].title}, B = {other.title}", markup=False, highlight=False)
        console.print(_table(HEADINGS, [cells(comparison) for comparison in own]))
        for comparison in own:
            for line in notes(comparison):
                console.print(f"{comparison.benchmark}: {line}", markup=False, highlight=False, soft_wrap=True)
        rows = [
            (comparison.benchmark, letter, *effort_cells(found))
            for comparison in own
            for letter, found in (("A", comparison.effort_a), ("B", comparison.effort_b))
        ]
        console.print(_table(("benchmark", "run", *EFFORT_HEADINGS), rows))
    console.print(count_note(comparisons), markup=False, highlight=False, soft_wrap=True)


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def as_json(
    comparisons: Sequence[BenchmarkComparison], runs: Sequence[ComparedRun], published: Sequence[Any] = ()
) -> str:
    """Returns the comparisons as JSON."""
    return json.dumps(
        {
            "runs": [{"title": run.title, "directory": str(run.directory), "stage": run.stage} for run in runs],
            "tests": sum(comparison.difference is not None for comparison in comparisons),
            "comparisons": [comparison.to_dict() for comparison in comparisons],
            "published": [entry.to_dict() for entry in published],
        },
        indent=2,
        ensure_ascii=False,
    )


def as_csv(comparisons: Sequence[BenchmarkComparison]) -> str:
    """Returns one line per comparison; numbers as fractions of 1."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ("benchmark", "a", "b", "n", "clusters", "both", "only_a", "only_b", "neither", "value_a", "value_b", "difference",
         "low", "high", "p", "adjusted_p", "test", "discordance", "smallest_visible", "only_answered_a", "only_answered_b",
         "unscored_a", "unscored_b", "judged_a", "judged_b", "judged_in_one", *(f"{field}_{run}" for run in "ab" for field in _EFFORT_FIELDS), "warnings")
    )  # fmt: skip
    for row in comparisons:
        found, counts = row.difference, row.counts
        difference = [""] * 10 if found is None else [
            found.mean_a, found.mean_b, found.difference, *found.interval, found.p_value, row.adjusted_p, found.test,
            found.discordance, found.smallest_visible,
        ]  # fmt: skip
        writer.writerow(
            (row.benchmark, row.a, row.b, counts.n, 0 if found is None else found.clusters, counts.both, counts.only_a,
             counts.only_b, counts.neither, *difference, row.only_answered_a, row.only_answered_b, row.unscored_a,
             row.unscored_b, row.judged_a, row.judged_b, row.judged_in_one, *(getattr(effort, field) for effort in (row.effort_a, row.effort_b)
             for field in _EFFORT_FIELDS), "; ".join(row.warnings))
        )  # fmt: skip
    return out.getvalue()


_EFFORT_FIELDS = tuple(Effort.__dataclass_fields__)
