"""Writes a page about a curation: the funnel per source, reasons of removal, labels, and overlapping pairs with images."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from dv2_jax.curation.card import CARD_FILE
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import IMAGES
from dv2_jax.curation.overlap import ROWS
from dv2_jax.files import atomic_write
from dv2_jax.report.page import to_data_uri

PAGE = "report/index.html"
SHOWN_PAIRS = 100


def write_page(curation: Curation) -> Path:
    """Writes the page of a curation that has been mixed and returns its path."""
    output = curation.folder / "output"
    style = (files("dv2_jax.report") / "assets" / "style.css").read_text()
    title = escape(f"Curation {curation.config.run.name}")
    body = [
        f"<h1>{title}</h1>",
        markdown_tables((output / CARD_FILE).read_text(encoding="utf-8")),
        "<h2>Solve rates without and with tools</h2>" + solve_rates(_rows(output)),
        "<h2>Overlapping pairs</h2>" + pairs(_rows(output), curation),
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>"
    )
    path = curation.folder / PAGE
    atomic_write(path, page)
    return path


def _rows(output: Path) -> Iterator[dict[str, Any]]:
    """Reads the provenance of every row, one at a time."""
    with open(output / "provenance.jsonl", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def markdown_tables(card: str) -> str:
    """Renders the headings, paragraphs and tables of a data card; its first heading and its settings are left out."""
    parts = []
    for block in card.split("\n\n")[1:]:
        if block.startswith("## Settings"):
            break
        if block.startswith("## "):
            parts.append(f"<h2>{escape(block[3:])}</h2>")
        elif block.startswith("|"):
            parts.append(_table(block))
        else:
            parts.append(f'<p class="hint">{escape(block)}</p>')
    return "".join(parts)


def _table(block: str) -> str:
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[2:])
    return (
        f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def solve_rates(rows: Iterable[Mapping[str, Any]]) -> str:
    """Renders how many rows have each pair of solve counts: correct without tools down, with tools across."""
    counts: dict[tuple[int, int], int] = {}
    most = 0
    for row in rows:
        if row["without_tools"] and row["with_tools"]:
            key = row["without_tools"]["correct"], row["with_tools"]["correct"]
            counts[key] = counts.get(key, 0) + 1
            most = max(most, row["without_tools"]["n"], row["with_tools"]["n"])
    if not counts:
        return '<p class="hint">No row has both labels.</p>'
    down = range(max(key[0] for key in counts) + 1)
    head = "".join(f"<th>{across} of {most} with tools</th>" for across in range(most + 1))
    body = "".join(
        f"<tr><td>{without} without</td>"
        + "".join(f"<td>{counts.get((without, across), 0) or '–'}</td>" for across in range(most + 1))
        + "</tr>"
        for without in down
    )
    return f'<div class="scroll"><table class="results"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(rows: Iterable[Mapping[str, Any]], curation: Curation) -> str:
    """Renders the first overlapping pairs with the images of both; pairs for review come first."""
    total = 0

    def found() -> Iterator[tuple[bool, str, str, Mapping[str, Any], Sequence[str]]]:
        nonlocal total
        for row in rows:
            for pair in row["pairs"]:
                total += 1
                yield pair["drop"], row["id"], pair["other"], pair, row["images"]

    body = []
    for drop, row_id, other, pair, images in heapq.nsmallest(SHOWN_PAIRS, found(), key=lambda entry: entry[:3]):
        others = curation.store.document(other)["images"] if pair["set"] == ROWS else pair.get("images", [])
        shown = _image(curation.folder / IMAGES, images) + _image(curation.folder / IMAGES, others)
        label = "dropped" if drop else "to review"
        body.append(
            f"<p><b>{escape(label)}</b>: {escape(row_id)} and {escape(other)} ({escape(pair['set'])}):"
            f' {escape(pair["reason"])}</p><div class="shots">{shown}</div>'
        )
    rest = total - SHOWN_PAIRS
    more = f'<p class="hint">{rest:,} more in provenance.jsonl.</p>' if rest > 0 else ""
    return ("".join(body) or '<p class="hint">None.</p>') + more


def _image(folder: Path, names: Sequence[str]) -> str:
    path = folder / names[0] if names else None
    if path is None or not path.is_file():
        return ""
    uri, _ = to_data_uri(path.read_bytes())
    return f'<img src="{uri}" alt="" style="max-height:160px;margin:4px">'
