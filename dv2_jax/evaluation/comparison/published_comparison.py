"""Compares the tables of runs with published numbers, whose answers are not known: never a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from rich.table import Table
from scipy.special import ndtr

from dv2_jax.evaluation.comparison.stored_run import ComparedRun
from dv2_jax.evaluation.published import PublishedValue, published_values
from dv2_jax.evaluation.statistics import Z95, smallest_unpaired_difference

HEADINGS = ("run", "benchmark", "published", "n", "here", "n", "difference", "p", "visible from", "")


@dataclass(frozen=True)
class PublishedComparison:
    """The overall value of a run and a published one. `p_value` is that of a z-test of two independent means."""

    run: str
    benchmark: str
    model: str
    published: float
    published_n: int
    value: float
    n: int
    difference: float
    p_value: float
    smallest_visible: float

    @property
    def note(self) -> str:
        """Says how far the numbers are comparable."""
        if self.n != self.published_n:
            return "other rows: not the published number of questions"
        return "visible" if self.p_value < 0.05 else "within the noise"

    def cells(self) -> tuple[str, ...]:
        """Formats the comparison under `HEADINGS`; differences in points."""
        return (
            self.run, self.benchmark, f"{self.published:.1%}", f"{self.published_n:,}", f"{self.value:.1%}",
            f"{self.n:,}", f"{100 * self.difference:+.1f}", f"{self.p_value:.3f}", f"{100 * self.smallest_visible:.1f}",
            self.note,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON types."""
        return asdict(self) | {"note": self.note}


def compare_published(runs: Sequence[ComparedRun], model: str) -> list[PublishedComparison]:
    """Compares the overall value of each run's own table with that of a paper.

    Raises:
        PublishedModelError: there are no published values of the model.
    """
    values = published_values(model)
    found = []
    for run in runs:
        for benchmark in run.benchmarks:
            row = run.table_row(benchmark)
            published = values.get(
                benchmark.removesuffix("_deepeyesv2")
            )  # the same questions, with the released prompts
            if published and row and row["value"] is not None and row["interval"] is not None:
                found.append(_compare(run.title, benchmark, model, published, row))
    return found


def _compare(
    run: str, benchmark: str, model: str, published: PublishedValue, row: dict[str, Any]
) -> PublishedComparison:
    low, high = row["interval"]
    own_error = (high - low) / (2 * Z95)  # clusters are in the interval; those of the paper are not known
    variance = own_error**2 + published.value * (1 - published.value) / published.n
    difference = row["value"] - published.value
    p_value = 2 * float(ndtr(-abs(difference) / variance**0.5))
    return PublishedComparison(
        run=run,
        benchmark=benchmark,
        model=model,
        published=published.value,
        published_n=published.n,
        value=row["value"],
        n=row["n"],
        difference=difference,
        p_value=p_value,
        smallest_visible=smallest_unpaired_difference(variance),
    )


def caption(model: str) -> str:
    """Returns the sentence that says what these numbers are."""
    return (
        f"published values of {model}: not paired, since the answers are not known; another prompt, judge or search index"
        " changes values by points that no test accounts for"
    )


def published_table(found: Sequence[PublishedComparison], model: str) -> Table:
    """Returns the comparison as a table for a terminal."""
    table = Table(header_style="bold", caption=caption(model), caption_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 or not heading else "right")
    for row in found:
        table.add_row(*row.cells())
    return table


def published_section(found: Sequence[PublishedComparison], model: str) -> str:
    """Renders the comparison as a section of the page."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.cells())}</tr>" for row in found)
    return (
        f'<h2>Published values of {escape(model)}</h2><p class="hint">{escape(caption(model))}.</p><div class="scroll">'
        f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
