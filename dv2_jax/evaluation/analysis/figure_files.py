"""Writes the tables of the figures as CSV, and the figures as PNG with matplotlib."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.evaluation.analysis.figure_tables import STEP_METRICS, FigureTable
from dv2_jax.files import atomic_write

COLORS = ("#2e6ec4", "#d9822b", "#1c8a54", "#8b54c4", "#c44a6a", "#8a8780")  # those of the page, s0 to s5
DPI = 150


def csv_text(table: FigureTable) -> str:
    """Returns a table as CSV with exact numbers; empty cells for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow(["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in row])
    return out.getvalue()


def write_csv(folder: Path, tables: Sequence[FigureTable]) -> list[Path]:
    """Writes one CSV file per table that has rows."""
    paths = []
    for table in tables:
        if table.rows:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / f"{table.name}.csv", csv_text(table))
            paths.append(folder / f"{table.name}.csv")
    return paths


def write_png(folder: Path, tables: Sequence[FigureTable]) -> list[Path]:
    """Draws every table that has a figure and rows."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    draw = {
        "figure6_tool_kinds": _draw_kinds,
        "figure7_tool_rate": _draw_rates,
        "figure8_steps": _draw_steps,
        "figure10_step_kinds": _draw_step_kinds,
        "error_classes": _draw_errors,
        "tool_benefit": _draw_benefit,
    }
    paths = []
    for table in tables:
        if not table.rows or table.name not in draw:
            continue
        figure = Figure(layout="constrained")
        draw[table.name](figure, table)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / f"{table.name}.png", out.getvalue())
        paths.append(folder / f"{table.name}.png")
    return paths


def _places(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["benchmark"], row["policy"]) for row in rows))


def _draw_kinds(figure: Any, table: FigureTable) -> None:
    _stacks(figure, table, "kind", "title", "share", "share of calls")


def _draw_errors(figure: Any, table: FigureTable) -> None:
    _stacks(figure, table, "class", "title", "share of wrong", "share of wrong answers")


def _stacks(figure: Any, table: FigureTable, key: str, title: str, share: str, label: str) -> None:
    """Draws a stacked horizontal bar per benchmark and policy; more than six classes repeat the colors with hatching."""
    rows = table.dicts()
    places = _places(rows)
    figure.set_size_inches(8, 1.4 + 0.4 * len(places))
    axes = figure.subplots()
    for index, kind in enumerate(dict.fromkeys(row[key] for row in rows)):
        found = {(row["benchmark"], row["policy"]): row for row in rows if row[key] == kind}
        left = [_sum_before(rows, place, kind, key, share) for place in places]
        axes.barh(
            range(len(places)),
            [found[place][share] if place in found else 0 for place in places],
            left=left,
            color=COLORS[index % len(COLORS)],
            hatch="///" if index >= len(COLORS) else None,
            label=next(iter(found.values()))[title],
        )
    axes.set_yticks(range(len(places)), [f"{benchmark}, {policy}" for benchmark, policy in places])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=label, title=table.title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _sum_before(rows: Sequence[Mapping[str, Any]], place: tuple[str, str], kind: str, key: str, share: str) -> float:
    """Returns the sum of the shares of the classes that are drawn before `kind`."""
    kinds = list(dict.fromkeys(row[key] for row in rows))
    before = kinds[: kinds.index(kind)]
    return sum(row[share] for row in rows if (row["benchmark"], row["policy"]) == place and row[key] in before)


def _draw_rates(figure: Any, table: FigureTable) -> None:
    rows = table.dicts()
    figure.set_size_inches(8, 1.2 + 0.4 * len(rows))
    axes = figure.subplots()
    values = [row["share"] for row in rows]
    # A bound that equals the share may differ from it by rounding, and matplotlib refuses negative lengths.
    errors = [
        [max(0.0, row["share"] - row["interval low"]) for row in rows],
        [max(0.0, row["interval high"] - row["share"]) for row in rows],
    ]
    axes.barh(range(len(rows)), values, xerr=errors, color=COLORS[0], ecolor="#444444", capsize=2)
    for column, mark, label in (("paper cold start %", "|", "paper, cold start"), ("paper RL %", "D", "paper, RL")):
        points = [(row[column] / 100, index) for index, row in enumerate(rows) if row[column] is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=mark, color=COLORS[1], label=label, zorder=3)
            axes.legend(frameon=False, fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['benchmark']}, {row['policy']}" for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of answers", title=table.title)


def _draw_steps(figure: Any, table: FigureTable) -> None:
    rows = table.dicts()
    figure.set_size_inches(10, 3.2)
    for axes, (name, _, _) in zip(figure.subplots(1, 3), STEP_METRICS, strict=True):
        points = [row for row in rows if row[f"{name} mean"] is not None]
        steps, means = [row["step"] for row in points], [row[f"{name} mean"] for row in points]
        spread = [row[f"{name} std"] for row in points]
        axes.plot(steps, means, color=COLORS[0], marker="o", markersize=2)
        low = [center - std for center, std in zip(means, spread, strict=True)]
        high = [center + std for center, std in zip(means, spread, strict=True)]
        axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="" if rows[0]["policy"] else "step")
        if rows[0]["policy"]:
            axes.set_xticks(steps, [row["policy"] for row in points])
    figure.suptitle(table.title)


def _draw_step_kinds(figure: Any, table: FigureTable) -> None:
    rows = table.dicts()
    figure.set_size_inches(8, 3.6)
    axes = figure.subplots()
    for index, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        points = [row for row in rows if row["kind"] == kind]
        color = COLORS[index % len(COLORS)]
        axes.plot(
            [row["step"] for row in points], [row["share"] for row in points], color=color, label=points[0]["title"]
        )
    axes.set(ylim=(0, 1), xlabel="step", ylabel="share of calls", title=table.title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _draw_benefit(figure: Any, table: FigureTable) -> None:
    rows = [row for row in table.dicts() if row["value"] is not None]
    figure.set_size_inches(8, 1.2 + 0.3 * len(rows))
    axes = figure.subplots()
    for index, row in enumerate(rows):
        if row["interval low"] is not None:
            axes.plot([row["interval low"], row["interval high"]], [index, index], color="#444444", linewidth=1)
        axes.plot([row["value"]], [index], marker="o", color=COLORS[0])
    axes.set_yticks(range(len(rows)), [f"{row['benchmark']}, {row['policy']}: {row['measure']}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="#bbbbbb", linewidth=0.8)
    axes.set(title=table.title, xlabel="share of questions")
