"""Renders the analysis as sections of the report page; every number comes from the tables that the CSV files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dv2_jax.evaluation.analysis.error_classes import CLASSES
from dv2_jax.evaluation.analysis.figure_tables import STEP_METRICS, FigureTable
from dv2_jax.evaluation.analysis.paper_values import BENEFITS, KIND_TRENDS, READ_OFF, STEP_TRENDS
from dv2_jax.report.charts import Series, line_chart

FRACTIONS = {"share", "share of wrong", "interval low", "interval high", "value"}
MAX_COLORS = 10  # classes s0 to s9 of the style sheet

Rows = Sequence[Mapping[str, Any]]


def cell(column: str, value: Any) -> str:
    """Formats a number of a table: fractions as percent, other fractional numbers with three significant digits."""
    if value is None or isinstance(value, str):
        return value or "–"
    if column in FRACTIONS:
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], text: Sequence[str] = ()) -> str:
    """Renders rows; columns of names are left-aligned, and those of `text` may wrap."""
    names = {column for column, value in zip(columns, rows[0], strict=True) if isinstance(value, str)} - {
        "95 % interval"
    }
    styles = [' class="text"' if column in text else ' class="left"' if column in names else "" for column in columns]
    heads = "".join(f"<th{style}>{escape(column)}</th>" for column, style in zip(columns, styles, strict=True))
    body = []
    for row in rows:
        cells = zip(columns, styles, row, strict=True)
        body.append("".join(f"<td{style}>{escape(cell(column, value))}</td>" for column, style, value in cells))
    return (
        f'<div class="scroll"><table class="results flat"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table></div>"
    )


def _numbers(table: FigureTable) -> str:
    """Renders all rows of a table, folded."""
    shown = html_table(table.columns, table.rows, ("title",))
    return f'<details class="numbers"><summary>numbers, as in {table.name}.csv</summary>{shown}</details>'


def _hint(*sentences: str) -> str:
    text = " ".join(filter(None, sentences))
    return f'<p class="hint">{escape(text)}</p>' if text else ""


def tool_kinds_section(table: FigureTable, order: Mapping[str, str]) -> str:
    """Renders Figure 6 as stacked bars, with those of the paper where it has the benchmark.

    `order` maps the classes of the run's tools to titles; each class has the same color in every figure.
    """
    if not table.rows:
        return ""
    rows = table.dicts()
    kinds = list(dict.fromkeys([*order.items(), *((row["kind"], row["title"]) for row in rows)]))
    bars = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        for policy in dict.fromkeys(row["policy"] for row in own):
            found = {row["kind"]: row["share"] for row in own if row["policy"] == policy}
            bars.append(_bar(f"{benchmark}, {policy}", kinds, found))
        for column in ("paper cold start %", "paper RL %"):
            found = {row["kind"]: row[column] / 100 for row in own if row[column] is not None}
            if found:
                label = column.removeprefix("paper ").removesuffix(" %")
                bars.append(_bar(f"{benchmark}, paper, {label}", kinds, found))
    return f"<h2>{escape(table.title)}</h2>{_hint(table.note)}{_stacked(kinds, bars)}{_numbers(table)}"


def _stacked(kinds: Sequence[tuple[str, str]], bars: Sequence[str]) -> str:
    legend = "".join(
        f'<span class="key s{i % MAX_COLORS}">{escape(title)}</span>' for i, (_, title) in enumerate(kinds)
    )
    return f'<div class="mix wide"><div class="legend">{legend}</div>{"".join(bars)}</div>'


def _bar(label: str, kinds: Sequence[tuple[str, str]], found: Mapping[str, float]) -> str:
    parts = "".join(
        f'<span class="s{i % MAX_COLORS}" style="flex:{found[kind]:.4f}" title="{escape(title)}: {found[kind]:.1%}"></span>'
        for i, (kind, title) in enumerate(kinds)
        if found.get(kind)
    )
    return f'<div class="row"><span>{escape(label)}</span><div class="stack">{parts}</div></div>'


def tool_rate_section(table: FigureTable) -> str:
    """Renders Figure 7 as a table with bars."""
    if not table.rows:
        return ""
    body = []
    for row in table.dicts():
        low, high = row["interval low"], row["interval high"]
        bar = (
            f'<span class="bar" title="95 % interval {low:.1%} to {high:.1%}"><i style="width:{row["share"]:.1%}"></i>'
            f'<u style="left:{low:.1%};width:{high - low:.1%}"></u></span>'
        )
        cells = [f"<td>{escape(row['benchmark'])}, {escape(row['policy'])}</td>"]
        cells += [f"<td>{row['share']:.1%}{bar}</td>", f"<td>{low:.1%} to {high:.1%}</td>"]
        cells += [f"<td>{cell(name, row[name])}</td>" for name in ("answers", "paper cold start %", "paper RL %")]
        body.append(f"<tr>{''.join(cells)}</tr>")
    names = ("", "with a call", "95 % interval", "n", "paper, cold start, %", "paper, RL, %")
    heads = "".join(f"<th>{name}</th>" for name in names)
    shown = (
        f'<div class="scroll"><table class="results flat"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    return f"<h2>{escape(table.title)}</h2>{_hint(table.note)}{shown}"


def steps_section(table: FigureTable) -> str:
    """Renders Figure 8 as three charts with bands."""
    if not table.rows:
        return ""
    charts = []
    for name, _, _ in STEP_METRICS:
        rows = [row for row in table.dicts() if row[f"{name} mean"] is not None]
        if rows:
            steps = [float(row["step"]) for row in rows]
            means, spread = [row[f"{name} mean"] for row in rows], [row[f"{name} std"] for row in rows]
            note = f"paper: {STEP_TRENDS[name]}"
            charts.append(line_chart(name.capitalize(), [Series(name, steps, means, spread)], note=note))
    policies = "; ".join(f"{row['step']}: {row['policy']}" for row in table.dicts() if row["policy"])
    hint = _hint(table.note, policies, f"The paper's values are {READ_OFF}; it trains about 60 steps.")
    return f'<h2>{escape(table.title)}</h2>{hint}<div class="charts">{"".join(charts)}</div>{_numbers(table)}'


def step_kinds_section(table: FigureTable) -> str:
    """Renders Figure 10 as one line per class of use."""
    if not table.rows:
        return ""
    rows = table.dicts()
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        lines.append(Series(own[0]["title"], [float(row["step"]) for row in own], [row["share"] for row in own]))
    chart = line_chart("Share of calls", lines, percent=True, note=f"paper: {KIND_TRENDS}")
    return f'<h2>{escape(table.title)}</h2><div class="charts">{chart}</div>{_numbers(table)}'


def error_section(table: FigureTable, without_verdict: Mapping[tuple[str, str], Mapping[str, int]]) -> str:
    """Renders the classes of errors, their rules and examples; failed and undecided answers are stated apart."""
    missing = [
        f"{benchmark}, {policy}: {', '.join(f'{count:,} {outcome}' for outcome, count in counts.items() if count)}"
        for (benchmark, policy), counts in without_verdict.items()
        if any(counts.values())
    ]
    apart = f"Not errors of the policy, and not counted: {'; '.join(missing)}." if missing else ""
    if not table.rows:
        return f"<h2>{escape(table.title)}</h2>{_hint(apart)}" if apart else ""
    rows = table.dicts()
    kinds = [(name, CLASSES[name].title) for name in CLASSES if any(row["class"] == name for row in rows)]
    kinds += [(name, name) for name in dict.fromkeys(row["class"] for row in rows) if name not in CLASSES]
    bars = []
    for place in dict.fromkeys((row["benchmark"], row["policy"]) for row in rows):
        own = {row["class"]: row["share of wrong"] for row in rows if (row["benchmark"], row["policy"]) == place}
        bars.append(_bar(", ".join(place), kinds, own))
    columns = ("benchmark", "policy", "type", "class", "answers", "share of wrong", "examples")
    shown = [(*(row[name] for name in columns[:3]), row["title"], *(row[name] for name in columns[4:])) for row in rows]
    rules = [
        (known.group, known.title, known.rule, known.limits)
        for name, known in CLASSES.items()
        if (name, known.title) in kinds
    ]
    rule_table = html_table(("type", "class", "rule", "the rule cannot see"), rules, ("rule", "the rule cannot see"))
    hint = _hint(
        "Wrong answers by rules that use the records alone; the first rule that applies counts. Rules see neither the right"
        " region of an image nor whether a reference is wrong. Classes that people name in error_labels.csv replace them.",
        apart,
    )
    return (
        f"<h2>{escape(table.title)}</h2>{hint}{_stacked(kinds, bars)}{html_table(columns, shown, ('examples',))}"
        f'<details class="numbers"><summary>the rules</summary>{rule_table}</details>'
    )


def benefit_section(table: FigureTable, samples: int) -> str:
    """Renders the benefit of tools; nothing without answers of the same questions without tools."""
    if not table.rows:
        return ""
    rows = table.dicts()
    columns = ("benchmark", "policy", "without tools", "measure", "value", "95 % interval", "questions")
    shown = []
    for row in rows:
        low, high = row["interval low"], row["interval high"]
        interval = "–" if low is None else f"{low:.1%} to {high:.1%}"
        value = (
            "–"
            if row["value"] is None
            else f"{row['value']:+.1%}"
            if row["measure"] == "ΔTE"
            else f"{row['value']:.1%}"
        )
        cells = (
            row["benchmark"],
            row["policy"],
            row["without tools"],
            row["measure"],
            value,
            interval,
            row["questions"],
        )
        shown.append(cells)
    published = [
        (known.model, *("–" if number is None else f"{number:g}" for number in (known.ma_tool, known.ma_text, known.ma_mean, known.gain, known.harm, known.delta)))
        for known in BENEFITS
    ]  # fmt: skip
    names = (
        "model, % (Beacon, mean of its benchmarks)",
        "MA_tool",
        "MA_text",
        "MA_mean",
        "Tool-Gain",
        "Tool-Harm",
        "ΔTE",
    )
    few = (
        ""
        if samples >= 5
        else f"With {samples} answer{'s' * (samples > 1)} per question without tools, easy and hard are noisier than with"
        " the 5 of the definition (--config.eval.samples=5)."
    )
    hint = _hint(
        "MA_tool: share of the questions that are hard without tools in which tools are called. MA_text: share of the easy"
        " ones in which none is. MA_mean: their mean; 50 % shows no discrimination. Tool-Gain: wrong without, right with"
        " tools. Tool-Harm: the opposite. ΔTE: Gain minus Harm, which is the difference of the two accuracies.",
        few,
    )
    return (
        f"<h2>{escape(table.title)}</h2>{hint}{html_table(columns, shown)}"
        f'<details class="numbers"><summary>published values</summary>{html_table(names, published)}</details>'
    )
