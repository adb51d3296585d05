"""One self-contained page about a run: results, curves, and real trajectories that a person can read.

``python -m dv2_jax.telemetry.report RUN_DIR`` writes ``RUN_DIR/report/index.html`` from the files of the run
directory alone (``summary.json`` or ``results.json``, ``metrics.jsonl``, ``config.json``, ``trajectories/``).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image

from dv2_jax.telemetry.charts import Series, line_chart
from dv2_jax.telemetry.report_selection import select
from dv2_jax.telemetry.trajectories import PICTURE_FOLDER
from dv2_jax.telemetry.trajectory_html import STAGE_TITLES, card, stage_title

LONG_SIDE = 640  # pixels; larger pictures are embedded smaller
CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    # title, ((metric, label), ...), percent; a chart without any of its metrics is left out
    ("Reward", (("reward", "reward"), ("accuracy", "accuracy")), False),
    ("Tool calls per trajectory", (("tool_calls", "calls"),), False),
    ("Share of trajectories that use tools", (("tool_rate", "tools"), ("code_rate", "code"), ("search_rate", "search")), True),
    ("Response length, tokens", (("response_tokens", "tokens"),), False),
    ("Entropy of the policy, nats", (("entropy", "entropy"),), False),
    ("Engine and trainer log-probs, largest gap", (("logprob_gap_max", "gap"),), False),
    ("Loss", (("loss", "loss"),), False),
    ("Tokens per second", (("tokens_per_s", "tokens/s"),), False),
)  # fmt: skip
COLUMNS = (("accuracy", "accuracy", True), ("tool_rate", "uses tools", True), ("tool_calls", "calls", False), ("reward", "reward", False))  # fmt: skip
KIND_TITLES = {"crop": "crop", "numerical": "numerical analysis", "mark": "mark", "other": "other code", "image_search": "image search", "search": "text search"}  # fmt: skip


def write_report(run_dir: str | Path) -> Path:
    """Write the page and return its path. Whatever the run has not written yet is left out."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such run directory")
    path = run_dir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(render(run_dir), encoding="utf-8")
    os.replace(partial, path)
    return path


def render(run_dir: Path) -> str:
    """The page as a string."""
    config, summary = _json(run_dir / "config.json"), load_summary(run_dir)
    stages = {name: part for name, part in summary.items() if isinstance(part, Mapping) and "overall" in part}
    pictures = Pictures(run_dir / "trajectories" / PICTURE_FOLDER)
    cards = select(run_dir / "trajectories")
    shown = [card(record, pictures.show) for record in cards]
    assets = files("dv2_jax.telemetry") / "report_assets"
    return Template((assets / "page.html").read_text()).substitute(
        title=escape(config.get("run", {}).get("name") or run_dir.resolve().name),
        subtitle=escape(_subtitle(config)),
        style=(assets / "style.css").read_text(),
        script=(assets / "script.js").read_text(),
        tiles=_tiles(summary, stages),
        results=_results(stages),
        curves=_curves(run_dir / "metrics.jsonl"),
        mix=_mix(stages),
        trajectories=_filters(cards) + "\n".join(shown) if cards else '<p class="hint">None were stored.</p>',
        pictures=pictures.as_json(),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} from the files of this run; needs nothing else.",
    )


def load_summary(run_dir: Path) -> dict:
    """``summary.json`` of a training run, else ``results.json`` of an evaluation, else nothing."""
    return _json(run_dir / "summary.json") or _json(run_dir / "results.json")


class Pictures:
    """The pictures that the page shows, each embedded once and referred to by its file name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._embedded: dict[str, tuple[str, tuple[int, int]]] = {}

    def show(self, name: str, caption: str) -> str:
        """A ``<figure>`` whose picture the page's script puts in place."""
        if name not in self._embedded:
            path = self.folder / name
            if not path.exists():
                return '<span class="missing">picture not stored</span>'
            self._embedded[name] = embed(path.read_bytes())
        width, height = self._embedded[name][1]
        small = " small" if max(width, height) < 160 else ""
        text = caption.replace("{size}", f"{width} × {height} px")
        shown = f"width:{3 * width}px" if small else ""
        return (
            f'<figure class="shot{small}"><img data-picture="{name}" alt="{escape(text)}" style="{shown}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )

    def as_json(self) -> str:
        return json.dumps({name: data for name, (data, _) in self._embedded.items()})


def embed(data: bytes) -> tuple[str, tuple[int, int]]:
    """Data URI of a picture, scaled down to :data:`LONG_SIDE`, and its original (width, height)."""
    with Image.open(io.BytesIO(data)) as picture:
        size = picture.size
        picture = picture.convert("RGB")
        picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if max(size) < 160:  # lossless where single pixels count
            picture.save(out, "PNG", optimize=True)
            kind = "png"
        else:
            picture.save(out, "JPEG", quality=82, optimize=True)
            kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", size


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _subtitle(config: Mapping) -> str:
    run, model = config.get("run", {}), config.get("model", {})
    parts = [config.get("recipe", ""), f"from {model['init']}" if model.get("init") else ""]
    if "seed" in run:
        parts.append(f"seed {run['seed']}")
    return " · ".join(part for part in parts if part)


def _tiles(summary: Mapping, stages: Mapping[str, Mapping]) -> str:
    tiles = []
    accuracies = [(name, part["overall"]["accuracy"]) for name, part in stages.items()]
    if accuracies:
        arrow = " → ".join(f"{value:.0%}" for _, value in accuracies)
        names = " → ".join(STAGE_TITLES.get(name, name).replace("after ", "") for name, _ in accuracies)
        tiles.append((arrow, f"accuracy, {names}"))
    last = list(stages.values())[-1]["overall"] if stages else {}
    if "n" in last:
        tiles.append((f"{last['n']:,}", "held-out questions"))
    if "seconds" in summary:
        tiles.append((_duration(summary["seconds"]), "wall time"))
    if "logprob_gap_max" in summary:
        tiles.append((f"{summary['logprob_gap_max']:.1e}", "largest log-prob gap, engine to trainer"))
    if "recompilations" in summary:
        tiles.append((str(summary["recompilations"]), "recompilations after the first step"))
    cells = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _results(stages: Mapping[str, Mapping]) -> str:
    if not stages:
        return ""
    skills = list(dict.fromkeys(skill for part in stages.values() for skill in part if skill != "overall"))
    groups = "".join(f'<th class="first" colspan="{len(COLUMNS)}">{escape(STAGE_TITLES.get(s, s))}</th>' for s in stages)
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


def _curves(path: Path) -> str:
    rows = _metric_rows(path)
    figures = []
    for title, lines, percent in CHARTS:
        series = []
        for key, label in lines:
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
            if points:
                series.append(Series(label, [x for x, _ in points], [y for _, y in points]))
        if series:
            figures.append(line_chart(title, series, percent=percent))
    return f'<h2>Training</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _metric_rows(path: Path) -> list[dict]:
    """Lines of metrics.jsonl by step; the newest wins where a resumed run wrote a step twice."""
    rows: dict[int, dict] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows[row["step"]] = rows.get(row["step"], {}) | row
    return [rows[step] for step in sorted(rows)]


def _mix(stages: Mapping[str, Mapping]) -> str:
    rows = []
    for name, part in stages.items():
        kinds = part["overall"].get("tool_kinds")
        if kinds and sum(kinds.values()):
            stack = "".join(
                f'<span class="s{i}" style="flex:{kinds[kind]:.4f}" title="{title}: {kinds[kind]:.1%}"></span>'
                for i, (kind, title) in enumerate(KIND_TITLES.items())
                if kinds.get(kind)
            )
            rows.append(f'<div class="row"><span>{escape(STAGE_TITLES.get(name, name))}</span><div class="stack">{stack}</div></div>')
    if not rows:
        return ""
    legend = "".join(f'<span class="key s{i}">{title}</span>' for i, title in enumerate(KIND_TITLES.values()))
    return f'<h2>What the tools were used for</h2><div class="mix"><div class="legend">{legend}</div>{"".join(rows)}</div>'


def _filters(records: list[dict]) -> str:
    def choice(name: str, label: str, values: list[str]) -> str:
        options = "".join(f'<option value="{escape(v)}">{escape(v.replace("_", " "))}</option>' for v in values)
        return f'<label>{label}<select name="{name}"><option value="">all</option>{options}</select></label>'

    found = list(dict.fromkeys(stage_title(record) for record in records))
    skills = list(dict.fromkeys(record["question"]["skill"] for record in records))
    return (
        '<p class="hint">The transcript is exact. Coloured text was written by the policy and trained on; grey text '
        'came from outside and was masked. <span class="swatch"></span> the darker a token, the less likely it was; '
        "point at it for its log-prob. Green trajectories were reinforced, red ones discouraged.</p>"
        f'<div class="filters">{choice("stage", "stage", found)}{choice("skill", "skill", skills)}'
        f'{choice("outcome", "outcome", ["right", "wrong", "lost"])}'
        f'{choice("tools", "tools", ["code", "search", "image_search", "none"])}'
        '<label><input type="checkbox" id="shade" checked>shade tokens</label>'
        '<button id="fold" type="button">open all</button><span id="count"></span></div>'
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dv2_jax.telemetry.report", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="a run directory, e.g. runs/default")
    try:
        print(write_report(parser.parse_args(argv).run_dir))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
