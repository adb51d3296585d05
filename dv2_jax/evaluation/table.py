"""The table base → cold start → RL, per skill, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

STAGE_TITLES = {"base": "base", "cold_start": "cold start", "rl": "RL", "evaluate": "result", "no_tools": "no tools"}
COLUMNS = (
    # key in the summary, heading, percent?
    ("accuracy", "accuracy", True),
    ("tool_rate", "uses tools", True),
    ("tool_calls", "calls", False),
    ("reward", "reward", False),
)


def comparison_table(stages: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = "") -> Table:
    """Rows are skills, ``overall`` last; every stage has the columns of :data:`COLUMNS`.

    ``stages`` maps a stage's name to the summary of its evaluation, in the order to show.
    """
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("skill")
    for stage in stages:
        name = STAGE_TITLES.get(stage, stage.replace("_", " "))
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


def print_comparison(stages: Mapping[str, Mapping], title: str = "", console: Console | None = None) -> None:
    """Print :func:`comparison_table`; a narrow terminal gets one table per stage instead of cut-off columns."""
    console = console or Console()
    whole = comparison_table(stages, title)
    if len(stages) > 1 and console.measure(whole, options=console.options.update(width=1000)).maximum > console.width:
        for stage, summary in stages.items():
            console.print(comparison_table({stage: summary}, title))
    else:
        console.print(whole)
