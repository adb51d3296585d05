"""Renders the sections of the report page above the trajectories: numbers, table, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from dv2_jax.report.charts import NUM_COLORS, Series, line_chart

COLUMNS = (
    # key, heading, percent
    ("accuracy", "accuracy", True),
    ("tool_rate", "uses tools", True),
    ("tool_calls", "calls", False),
    ("reward", "reward", False),
)
TOOL_USES = (("tool_kinds/*", ""),)
CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    # title, ((metric, label), ...), percent; a chart without any of its metrics is left out
    ("Reward", (("reward", "reward"), ("accuracy", "accuracy")), False),
    ("Accuracy per skill", (("accuracy/*", ""),), True),
    ("Share that uses tools, per skill", (("tool_rate/*", ""),), True),
    ("Tool calls per trajectory", (("tool_calls/*", ""),), False),
    ("What tools are used for", TOOL_USES, True),
    ("Response length, tokens", (("response_tokens", "tokens"),), False),
    ("Loss", (("loss", "loss"),), False),
    ("Entropy of the policy, nats", (("entropy", "entropy"),), False),
    ("KL to the reference policy, nats per token", (("kl_reference", "KL"),), False),
    ("Engine and trainer log-probs, largest gap", (("logprob_gap_max", "gap"),), False),
    ("Tokens per second", (("tokens_per_s", "tokens/s"),), False),
)


def tiles(summary: Mapping, stages: Mapping[str, Mapping]) -> str:
    """Renders the main numbers of the run as tiles."""
    tiles = []
    accuracies = [(name, part["overall"]["accuracy"]) for name, part in stages.items()]
    if accuracies:
        arrow = " → ".join(f"{value:.0%}" for _, value in accuracies)
        names = " → ".join(name for name, _ in accuracies)
        tiles.append((arrow, f"accuracy, {names}"))
    last = list(stages.values())[-1]["overall"] if stages else {}
    if "n" in last:
        tiles.append((f"{last['n']:,}", "held-out questions"))
    if "seconds" in summary:
        tiles.append((_duration(summary["seconds"]), "wall time"))
    if "logprob_gap_max" in summary:
        tiles.append((f"{summary['logprob_gap_max']:.1e}", "largest log-prob gap, engine to trainer"))
    if "recompilations" in summary:
        tiles.append((str(summary["recompilations"]), "programs compiled after the warm-up"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def results(stages: Mapping[str, Mapping]) -> str:
    """Renders the table of results per skill and stage."""
    if not stages:
        return ""
    skills = list(dict.fromkeys(skill for part in stages.values() for skill in part if skill != "overall"))
    groups = "".join(f'<th class="first" colspan="{len(COLUMNS)}">{escape(title)}</th>' for title in stages)
    heads = "".join(f"<th{_first(i)}>{title}</th>" for _ in stages for i, (_, title, _) in enumerate(COLUMNS))
    rows = []
    for skill in [*skills, "overall"]:
        cells = []
        for part in stages.values():
            row = part.get(skill)
            for i, (key, _, percent) in enumerate(COLUMNS):
                cells.append(f"<td{_first(i)}>{_cell(row, key, percent)}</td>")
        rows.append(f'<tr class="{"overall" * (skill == "overall")}"><td>{escape(skill)}</td>{"".join(cells)}</tr>')
    return (
        '<h2>Results on held-out questions</h2><div class="scroll"><table class="results"><thead>'
        f"<tr><th></th>{groups}</tr><tr><th>skill</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _first(index: int) -> str:
    return ' class="first"' if index == 0 else ""


def _cell(row: Mapping | None, key: str, percent: bool) -> str:
    if row is None or key not in row:
        return "–"
    value = row[key]
    if key != "accuracy":
        return f"{value:.0%}" if percent else f"{value:.2f}"
    interval = row.get("accuracy_interval")
    whisker = tip = ""
    if interval:
        low, high = interval
        whisker = f'<u style="left:{low:.1%};width:{high - low:.1%}"></u>'
        tip = f' title="95 % interval {low:.1%} to {high:.1%}"'
    return f'{value:.1%}<span class="bar"{tip}><i style="width:{value:.1%}"></i>{whisker}</span>'


def curves(path: Path, stages: Mapping[str, Mapping], use_titles: Mapping[str, str]) -> str:
    """Renders charts of `metrics.jsonl`; skills keep the order of the results table, so that their colors agree.

    `use_titles` maps each class of tool uses to its title, in the order of the chart's lines.
    """
    skills = [skill for part in stages.values() for skill in part if skill != "overall"]
    rows = metric_rows(path)
    figures = []
    for title, lines, percent in CHARTS:
        titles = use_titles if lines == TOOL_USES else {}
        series = []
        for key, label in _expand(lines, rows, list(titles) or skills):
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
            if points:
                series.append(Series(titles.get(label, label), [x for x, _ in points], [y for _, y in points]))
        if series:
            figures.append(line_chart(title, series, percent=percent))
    return f'<h2>Training</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _expand(lines: tuple[tuple[str, str], ...], rows: list[dict], order: list[str]) -> Iterator[tuple[str, str]]:
    """Expands `accuracy/*` to one line per metric with that prefix, those of `order` first, then by name."""
    known = {key for row in rows for key in row}
    for key, label in lines:
        prefix = key.removesuffix("*")
        if key == prefix:
            yield key, label
            continue
        names = sorted(name.removeprefix(prefix) for name in known if name.startswith(prefix))
        for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
            yield prefix + name, name


def metric_rows(path: Path) -> list[dict]:
    """Reads metrics.jsonl, one row per step; of rows with the same step (a resumed run), later values win."""
    rows: dict[int, dict] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # incomplete line of a killed run
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows[row["step"]] = rows.get(row["step"], {}) | row
    return [rows[step] for step in sorted(rows)]


def mix(stages: Mapping[str, Mapping], use_titles: Mapping[str, str]) -> str:
    """Renders the distribution of tool uses, one bar per stage; a class without a title is shown by its name."""
    rows = []
    used = {kind: kind for part in stages.values() for kind in part["overall"].get("tool_kinds") or {}}
    kind_titles = {**use_titles, **{kind: name for kind, name in used.items() if kind not in use_titles}}
    for title, part in stages.items():
        kinds = part["overall"].get("tool_kinds")
        if kinds and sum(kinds.values()):
            stack = "".join(
                f'<span class="s{i % NUM_COLORS}" style="flex:{kinds[kind]:.4f}" title="{escape(label)}: {kinds[kind]:.1%}"></span>'
                for i, (kind, label) in enumerate(kind_titles.items())
                if kinds.get(kind)
            )
            rows.append(f'<div class="row"><span>{escape(title)}</span><div class="stack">{stack}</div></div>')
    if not rows:
        return ""
    legend = "".join(
        f'<span class="key s{i % NUM_COLORS}">{escape(label)}</span>' for i, label in enumerate(kind_titles.values())
    )
    return (
        f'<h2>What the tools were used for</h2><div class="mix"><div class="legend">{legend}</div>{"".join(rows)}</div>'
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
