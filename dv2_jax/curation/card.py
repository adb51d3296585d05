"""Writes the data card of a curation: counts, settings, licenses and limits, for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dv2_jax.curation.funnel import Funnel
from dv2_jax.curation.teachers import run_reviewer, run_teachers
from dv2_jax.files import atomic_write

if TYPE_CHECKING:
    from dv2_jax.curation.curation import Curation

CARD_FILE = "README.md"
# Settings that say where and how fast models were asked, and nothing about the sets.
_NOT_SETTINGS = (
    "shard", "prices", "max_cost", "concurrency", "endpoint", "requests_per_minute", "tokens_per_minute", "timeout_s",
)  # fmt: skip


def write_card(curation: Curation, funnel: Funnel, output: Path) -> None:
    """Writes `README.md` into the folder of the sets."""
    atomic_write(output / CARD_FILE, card_text(curation, funnel))


def card_text(curation: Curation, funnel: Funnel) -> str:
    """Returns the card as Markdown; it depends on the journals and the settings alone."""
    licenses = sorted(
        {(line["source"], line["license"]) for line in map(curation.store.document, curation.store.ids())}
    )
    settings = {key: value for key, value in asdict(curation.settings).items() if key not in _NOT_SETTINGS}
    settings["teachers"] = [f"{teacher.name}={teacher.weight:g}" for teacher in run_teachers(curation.settings)]
    settings["reviewer"] = run_reviewer(curation.settings).name if curation.settings.reviewer else ""
    parts = [
        "# Curated sets",
        "`rl.parquet` has questions for RL in the released row format; `sft.json` has trajectories for the cold start in the"
        " ShareGPT format of LLaMA-Factory (columns `messages` and `images`), with images in `images/`. `provenance.jsonl`"
        " has a line for every row that was read: source, license, digests, labels, and the stage and reason of removal.",
        "## Rows left after each stage",
        _table(["source", *funnel.columns], [[name, *(f"{row.get(c, 0):,}" for c in funnel.columns)] for name, row in funnel.counts.items()]),
        "## Reasons of removal",
        _table(["stage", "reason", "rows"], [[stage, reason, f"{count:,}"] for (stage, reason), count in funnel.reasons.items()])
        if funnel.reasons
        else "No row was removed.",
        "## Licenses of the sources",
        _table(["source", "license"], [list(entry) for entry in licenses]),
        "## Settings",
        "```json\n" + json.dumps(settings, indent=2, sort_keys=True) + "\n```",
        "## Limits",
        "Crops of drawings with few corners are found only if they are near copies. Paraphrases that share few words with a"
        " benchmark's question are not found. A license is what the source declared; it was not checked.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
