"""Prints the results of stages (base, cold start, RL) per skill on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

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
    table.add_column("skill")
    for name in stages:
        for position, (_, heading, _) in enumerate(COLUMNS):
            table.add_column(f"{name if position == 0 else ''}\n{heading}", justify="right", no_wrap=True)
    skills = list(dict.fromkeys(skill for summary in stages.values() for skill in summary if skill != "overall"))
    for skill in [*skills, "overall"]:
        cells = []
        for summary in stages.values():
            row = summary.get(skill)
            for key, _, percent in COLUMNS:
                cells.append("–" if row is None else f"{row[key]:.1%}" if percent else f"{row[key]:.2f}")
        if skill == "overall":
            table.add_section()
        table.add_row(skill, *cells, style="bold" if skill == "overall" else None)
    return table


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
