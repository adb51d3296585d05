"""Prints the results of stages (base, cold start, RL) per skill, and those of benchmarks, on a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dv2_jax.report.scores import SCORE_HEADINGS, benchmark_notes, score_cells, score_rows
from dv2_jax.telemetry.stage_titles import stage_titles

COLUMNS = (
    # key in the summary, heading, True for percent
    ("accuracy", "accuracy", True),
    ("tool_rate", "uses tools", True),
    ("tool_calls", "calls", False),
    ("reward", "reward", False),
)


def comparison_table(stages: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = "") -> Table:
    """Returns a table with a row per skill, `overall` last, and the columns of `COLUMNS` for every stage.

    `stages` maps the titles of stages to the summaries of their evaluations, in display order.
    """
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("skill", overflow="fold")
    for name in stages:
        for position, (_, heading, _) in enumerate(COLUMNS):
            table.add_column(f"{name if position == 0 else ''}\n{heading}", justify="right", no_wrap=True)
    skills = list(dict.fromkeys(skill for summary in stages.values() for skill in summary if skill != "overall"))
    for skill in [*skills, "overall"]:
        cells = []
        for summary in stages.values():
            row = summary.get(skill)
            for key, _, percent in COLUMNS:
                is_known = row is not None and row.get("n", 1) > 0  # all answers failed, or have no verdict
                cells.append("–" if not is_known else f"{row[key]:.1%}" if percent else f"{row[key]:.2f}")
        if skill == "overall":
            table.add_section()
        table.add_row(skill, *cells, style="bold" if skill == "overall" else None)
    return table


def score_table(benchmark: Mapping[str, Any], titles: Mapping[str, str], title: str = "") -> Table:
    """Returns the rows of a benchmark with the columns `SCORE_HEADINGS` for every stage.

    `benchmark` is an entry of `benchmarks` in `results.json`; `titles` maps the names of stages to their titles.
    """
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("row", overflow="fold")
    stages = {title: benchmark["rows"][name] for name, title in titles.items() if name in benchmark["rows"]}
    for name in stages:
        for position, heading in enumerate(SCORE_HEADINGS):
            table.add_column(f"{name if position == 0 else ''}\n{heading}", justify="right", no_wrap=True)
    for name, rows in score_rows(stages).items():
        is_overall = name == "overall"
        if is_overall:
            table.add_section()
        cells = itertools.chain.from_iterable(map(score_cells, rows))
        table.add_row(name, *cells, style="bold" if is_overall else None)
    return table


def print_scores(results: Mapping[str, Any], console: Console) -> None:
    """Prints one table per benchmark of a `results.json`, or one per benchmark and stage on a narrow terminal."""
    titles = stage_titles(results)
    for name, benchmark in results["benchmarks"].items():
        _print_fitting(benchmark, titles, f"{name}: {benchmark['questions']:,} questions", console)
        for scorer, rows in benchmark.get("scorers", {}).items():
            _print_fitting(benchmark | {"rows": rows}, titles, f"{name}, scorer {scorer}", console)
        for line in benchmark_notes(benchmark, titles):
            console.print(line, markup=False, highlight=False)


def _print_fitting(benchmark: Mapping[str, Any], titles: Mapping[str, str], heading: str, console: Console) -> None:
    """Prints a table of all stages or, where the terminal is too narrow for it, one of each with the stage in its title."""
    table = score_table(benchmark, titles, heading)
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(table)
        return
    for stage, title in titles.items():
        if stage in benchmark["rows"]:
            console.print(score_table(benchmark, {stage: ""}, f"{heading}; {title}"))


def print_comparison(summary: Mapping[str, Any], title: str = "", console: Console | None = None) -> None:
    """Prints the evaluations of a `summary.json` or `results.json` as one table.

    If the terminal is too narrow for all columns, each stage has its own table.
    """
    console = console or Console()
    stages = {title: summary[name] for name, title in stage_titles(summary).items()}
    table_of_all_stages = comparison_table(stages, title)
    if (
        len(stages) > 1
        and console.measure(table_of_all_stages, options=console.options.update(width=1000)).maximum > console.width
    ):
        for stage, result in stages.items():
            console.print(comparison_table({stage: result}, title))
    else:
        console.print(table_of_all_stages)
