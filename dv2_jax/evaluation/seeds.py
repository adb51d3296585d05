"""`python -m dv2_jax.evaluation.seeds runs/rl-0 runs/rl-1 runs/rl-2`: compares runs of one recipe with different seeds.

Prints median and range over the runs, per stage and skill, and the gains from stage to stage within each run.
Accuracies of a small model differ between seeds by several points, so that a single run is not conclusive.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dv2_jax.telemetry.stage_titles import NAMES_BEFORE_0_2, stage_titles

Summary = Mapping[str, Any]


class SeedsError(ValueError):
    """Raised for runs that cannot be compared."""


def read_summaries(folders: Sequence[str | Path]) -> list[Summary]:
    """Reads the `summary.json` of every run.

    Raises:
        SeedsError: if one is missing or unfinished, or the runs evaluated different stages.
    """
    summaries = []
    for folder in map(Path, folders):
        path = folder / "summary.json"
        if not path.is_file():
            raise SeedsError(f"{path}: no such file; give run directories of finished RL runs")
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary.get("interrupted"):
            raise SeedsError(f"{folder}: stopped after step {summary.get('steps')}; run its command again to finish it")
        summaries.append(summary)
    if len({tuple(NAMES_BEFORE_0_2.get(name, name) for name in stages_of(summary)) for summary in summaries}) != 1:
        found = "; ".join(f"{f}: {', '.join(stages_of(s)) or 'none'}" for f, s in zip(folders, summaries, strict=True))
        raise SeedsError(f"the runs evaluated different stages ({found})")
    return summaries


def stages_of(summary: Summary) -> list[str]:
    """Returns the names of the policies that a run has evaluated, in order."""
    return list(stage_titles(summary))


def titled_stages(summaries: Sequence[Summary]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the title of each stage and its results in every run.

    A stage whose title differs between runs, because each run starts from its own checkpoint, has its name as title.
    """
    rows = {}
    for stages in zip(*(stage_titles(summary).items() for summary in summaries), strict=True):
        titles = {title for _, title in stages}
        name = NAMES_BEFORE_0_2.get(stages[0][0], stages[0][0])
        results = [summary[stored] for summary, (stored, _) in zip(summaries, stages, strict=True)]
        rows[titles.pop() if len(titles) == 1 else name] = results
    return rows


def seeds_table(summaries: Sequence[Summary]) -> Table:
    """Returns a table of skills by stages with accuracy and tool rate in percent, as median (lowest to highest)."""
    stages = titled_stages(summaries)
    runs = f"{len(summaries)} run{'s' if len(summaries) > 1 else ''}"
    table = Table(title=f"{runs}: median (lowest to highest), %", title_justify="left")
    table.add_column("skill")
    for title in stages:
        for heading in ("accuracy", "uses tools"):
            table.add_column(f"{title}\n{heading}", justify="right", no_wrap=True)
    first = next(iter(stages.values()))[0]
    for skill in [*(name for name in first if name != "overall"), "overall"]:
        cells = [
            spread([100 * result[skill][key] for result in results])
            for results in stages.values()
            for key in ("accuracy", "tool_rate")
        ]
        if skill == "overall":
            table.add_section()
        table.add_row(skill, *cells, style="bold" if skill == "overall" else None)
    return table


def gains(summaries: Sequence[Summary]) -> list[str]:
    """Returns one line per stage transition: the gain in overall accuracy within each run, in points, as spread."""
    lines = []
    for (before, earlier), (after, later) in itertools.pairwise(titled_stages(summaries).items()):
        differences = [
            100 * (b["overall"]["accuracy"] - a["overall"]["accuracy"]) for a, b in zip(earlier, later, strict=True)
        ]
        lines.append(f"{before} → {after}: {spread(differences, '+')} points")
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    """Formats values as `median (lowest to highest)`, or as one number if all are equal."""
    middle, low, high = (f"{value:{sign}.1f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dv2_jax.evaluation.seeds", description=__doc__.split("\n\n")[1])
    parser.add_argument("runs", nargs="+", help="run directories of finished RL runs, e.g. runs/rl-*")
    try:
        summaries = read_summaries(parser.parse_args(argv).runs)
    except SeedsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    console = Console()
    console.print(seeds_table(summaries))
    for line in gains(summaries):
        console.print(line)
    console.print(
        f"largest gap between engine and trainer log-probs {max(s['logprob_gap_max'] for s in summaries):.1e};"
        f" recompilations {max(s['recompilations'] for s in summaries)};"
        f" minutes {spread([s['seconds'] / 60 for s in summaries])}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
