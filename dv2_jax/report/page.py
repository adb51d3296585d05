"""Generates one self-contained HTML page about a run: results, curves and sampled trajectories.

`python -m dv2_jax.report RUN_DIR` writes `RUN_DIR/report/index.html` from the files of the run
directory alone (`summary.json` or `results.json`, `metrics.jsonl`, `config.json`, `trajectories/`).
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import run_tools, use_titles
from dv2_jax.config import AgentConfig, ConfigError
from dv2_jax.files import atomic_write
from dv2_jax.report import sections
from dv2_jax.report.scores import benchmark_scores
from dv2_jax.report.selection import select
from dv2_jax.report.trajectory_html import card, record_title, tools_of
from dv2_jax.telemetry.stage_titles import stage_titles
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER

LONG_SIDE = 640  # pixels; larger images are scaled down


def write_report(run_dir: str | Path, analysis: str = "", *, with_mix: bool = True) -> Path:
    """Writes the page and returns its path. Sections without data are left out.

    `analysis` holds further sections, as HTML: those of `evaluation.analysis`. Without `with_mix`, the section on the
    distribution of tool uses is left out.

    Raises:
        FileNotFoundError: if there is no such run directory.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such run directory")
    path = run_dir / "report" / "index.html"
    atomic_write(path, render(run_dir, analysis, with_mix=with_mix))
    return path


def render(run_dir: Path, analysis: str = "", *, with_mix: bool = True) -> str:
    """Returns the page as HTML."""
    config, summary = _json(run_dir / "config.json"), load_summary(run_dir)
    titles = stage_titles(summary)
    stages = {title: summary[name] for name, title in titles.items()}
    images = EmbeddedImages(run_dir / "trajectories" / IMAGE_FOLDER)
    tools = tools_of_run(config)
    cards = select(run_dir / "trajectories")
    shown = [card(record, images.figure_html, titles) for record in cards]
    assets = files("dv2_jax.report") / "assets"
    return Template((assets / "page.html").read_text()).substitute(
        title=escape(config.get("run", {}).get("name") or run_dir.resolve().name),
        subtitle=escape(_subtitle(config)),
        style=(assets / "style.css").read_text(),
        script=(assets / "script.js").read_text(),
        tiles=sections.tiles(summary, stages),
        results=sections.results(stages) + benchmark_scores(summary, titles),
        curves=sections.curves(run_dir / "metrics.jsonl", stages, use_titles(tools)),
        mix=sections.mix(stages, use_titles(tools)) if with_mix else "",
        analysis=analysis,
        trajectories=_filters(cards, titles, [tool.name for tool in tools]) + "\n".join(shown)
        if cards
        else '<p class="hint">None were stored.</p>',
        images=images.as_json(),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} from the files of this run; needs nothing else.",
    )


def load_summary(run_dir: Path) -> dict:
    """Reads `summary.json` of a training run or `results.json` of an evaluation; empty if there is neither."""
    return _json(run_dir / "summary.json") or _json(run_dir / "results.json")


class EmbeddedImages:
    """Collects the images of the page; each is embedded once and referenced by its file name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._embedded: dict[str, tuple[str, tuple[int, int]]] = {}

    def figure_html(self, name: str, caption: str) -> str:
        """Returns a `<figure>` whose image source is set by the page's script."""
        if name not in self._embedded:
            path = self.folder / name
            if not path.exists():
                return '<span class="missing">image not stored</span>'
            self._embedded[name] = to_data_uri(path.read_bytes())
        width, height = self._embedded[name][1]
        small = " small" if max(width, height) < 160 else ""
        text = caption.replace("{size}", f"{width} × {height} px")
        shown = f"width:{3 * width}px" if small else ""
        return (
            f'<figure class="shot{small}"><img data-image="{name}" alt="{escape(text)}" style="{shown}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )

    def as_json(self) -> str:
        """Returns the data URIs by file name, as JSON."""
        return json.dumps({name: data for name, (data, _) in self._embedded.items()})


def to_data_uri(data: bytes) -> tuple[str, tuple[int, int]]:
    """Encodes an image, scaled down to `LONG_SIDE`, as a data URI; also returns its original (width, height)."""
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        image = image.convert("RGB")
        image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if max(size) < 160:  # lossless: single pixels of small images matter
            image.save(out, "PNG", optimize=True)
            kind = "png"
        else:
            image.save(out, "JPEG", quality=82, optimize=True)
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


def tools_of_run(config: Mapping) -> tuple[Tool, ...]:
    """Returns the tools of a stored configuration; one that cannot be imported here is shown by its name alone."""
    agent = AgentConfig()
    tools = []
    for name in config.get("agent", {}).get("tools", agent.tools):
        try:
            tools += run_tools(replace(agent, tools=(name,)))
        except ConfigError as error:
            print(f"warning: {error}; the report shows its calls without titles", file=sys.stderr)
    return tuple(tools)


def _filters(records: list[dict], titles: Mapping[str, str], names: Sequence[str]) -> str:
    """Renders the selection of cards; `titles` are those of stages, `names` the tools of the run."""

    def choice(name: str, label: str, values: list[str]) -> str:
        options = "".join(f'<option value="{escape(v)}">{escape(v.replace("_", " "))}</option>' for v in values)
        return f'<label>{label}<select name="{name}"><option value="">all</option>{options}</select></label>'

    found = list(dict.fromkeys(record_title(record, titles) for record in records))
    skills = list(dict.fromkeys(record["question"]["skill"] for record in records))
    called = [tool for record in records for tool in tools_of(record)]
    tools = [*dict.fromkeys([*names, *(tool for tool in called if tool != "none")]), "none"]
    return (
        '<p class="hint">The transcript is exact. Colored text was written by the policy, and is what training trains '
        'on; gray text came from outside and is masked. <span class="swatch"></span> The darker a token, the less '
        "likely it was; point at it for its log-prob. Of the trajectories of RL steps, green ones were reinforced and "
        "red ones discouraged.</p>"
        f'<div class="filters">{choice("stage", "stage", found)}{choice("skill", "skill", skills)}'
        f"{choice('outcome', 'outcome', ['right', 'wrong', 'lost'])}"
        f"{choice('tools', 'tools', tools)}"
        '<label><input type="checkbox" id="shade" checked>shade tokens</label>'
        '<button id="fold" type="button">open all</button><span id="count"></span></div>'
    )
