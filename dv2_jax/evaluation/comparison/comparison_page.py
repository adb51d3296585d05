"""Renders the comparison of runs as one self-contained HTML page, down to the trajectories of single questions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from dv2_jax.evaluation.comparison.comparison_table import (
    EFFORT_HEADINGS,
    HEADINGS,
    cells,
    count_note,
    effort_cells,
    notes,
)
from dv2_jax.evaluation.comparison.discordant import (
    RIGHT,
    UNSCORED,
    WRONG,
    DiscordantQuestion,
    discordant_questions,
    shown_questions,
)
from dv2_jax.evaluation.comparison.paired_runs import BenchmarkComparison
from dv2_jax.evaluation.comparison.stored_run import ComparedRun
from dv2_jax.report.page import EmbeddedImages
from dv2_jax.report.trajectory_html import transcript

SHOWN = 60  # questions of each benchmark with their trajectories
MARKS = {RIGHT: "✓", WRONG: "✗", UNSCORED: "–"}
CLASSES = {RIGHT: "right", WRONG: "wrong", UNSCORED: "lost"}


def render_comparison(
    comparisons: Sequence[BenchmarkComparison],
    runs: Sequence[ComparedRun],
    published: str = "",
    shown: int = SHOWN,
) -> str:
    """Returns the page.

    Args:
        published: further section, as HTML.
        shown: number of questions per benchmark with their trajectories; the others are only counted.
    """
    images = {run.images: EmbeddedImages(run.images) for run in runs}
    questions = discordant_questions(runs)
    chosen = shown_questions(questions, shown)
    entries = "\n".join(_question(question, runs, images) for question in chosen)
    hint = f"{len(chosen):,} of {len(questions):,} questions are shown with their answers."
    assets = files("dv2_jax.report") / "assets"
    embedded: dict[str, str] = {}
    for of_run in images.values():
        embedded |= json.loads(of_run.as_json())
    return Template((assets / "comparison.html").read_text()).substitute(
        title=escape(" and ".join(run.title for run in runs)),
        subtitle="compared question by question",
        style=(assets / "style.css").read_text() + (assets / "comparison.css").read_text(),
        script=(assets / "comparison.js").read_text(),
        tables="".join(_pair(comparisons, runs[0], other) for other in runs[1:])
        + f'<p class="hint">{escape(count_note(comparisons))}.</p>',
        published=published,
        questions=f'<p class="hint">{hint}</p>{_filters(questions, runs)}{entries}'
        if questions
        else '<p class="hint">There are none.</p>',
        images=json.dumps(embedded),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M')} from the records of these runs; needs nothing else.",
    )


def _pair(comparisons: Sequence[BenchmarkComparison], first: ComparedRun, other: ComparedRun) -> str:
    """Renders the tables and notes of a run and the first one."""
    own = [comparison for comparison in comparisons if comparison.b == other.title]
    widest = max((abs(end) for row in own if row.difference for end in row.difference.interval), default=1.0) or 1.0
    rows = [
        [escape(cell) for cell in cells(row)[:9]]
        + [_interval(row, widest)]
        + [escape(cell) for cell in cells(row)[10:]]
        for row in own
    ]
    efforts = [
        [escape(cell) for cell in (row.benchmark, title, *effort_cells(effort))]
        for row in own
        for title, effort in ((row.a, row.effort_a), (row.b, row.effort_b))
    ]
    items = "".join(
        f"<li{_warning(line)}><b>{escape(row.benchmark)}</b>: {escape(line)}</li>" for row in own for line in notes(row)
    )
    return (
        f"<h2>A = {escape(first.title)}, B = {escape(other.title)}</h2>{_table(HEADINGS, rows)}"
        f'<ul class="notes">{items}</ul><h2>Efforts per answer</h2>{_table(("benchmark", "run", *EFFORT_HEADINGS), efforts)}'
    )


def _warning(line: str) -> str:
    return ' class="warning"' if line.startswith("warning") else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _interval(row: BenchmarkComparison, widest: float) -> str:
    """Renders the interval of a difference as text and on a line from -widest to widest."""
    text = escape(cells(row)[9])
    if row.difference is None:
        return text
    low, point, high = (50 + 50 * value / widest for value in (row.difference.interval[0], row.difference.difference,
                                                              row.difference.interval[1]))  # fmt: skip
    return (
        f'{text} <span class="span"><b></b><u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>'
        f'<i style="left:{point:.1f}%"></i></span>'
    )


def _filters(questions: Sequence[DiscordantQuestion], runs: Sequence[ComparedRun]) -> str:
    def choice(name: str, label: str, values: Sequence[str]) -> str:
        options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
        return f'<label>{escape(label)}<select name="{name}"><option value="">all</option>{options}</select></label>'

    benchmarks = list(dict.fromkeys(question.benchmark for question in questions))
    outcomes = "".join(choice(f"run{i}", run.title, (RIGHT, WRONG, UNSCORED)) for i, run in enumerate(runs))
    return (
        f'<div class="filters">{choice("benchmark", "benchmark", benchmarks)}{outcomes}'
        '<label>search <input type="search" id="search"></label><span id="count"></span></div>'
    )


def _question(question: DiscordantQuestion, runs: Sequence[ComparedRun], images: dict[Any, EmbeddedImages]) -> str:
    """Renders a question with one column per run."""
    marks = "".join(
        f'<span class="mark {CLASSES[outcome]}" title="{escape(run.title)}: {outcome}">{MARKS[outcome]}</span>'
        for run, outcome in zip(runs, question.outcomes, strict=True)
    )
    data = "".join(f' data-run{i}="{outcome}"' for i, outcome in enumerate(question.outcomes))
    records = [_record(question, i, run) for i, run in enumerate(runs)]
    asked, source = next(
        ((record["question"], run) for record, run in zip(records, runs, strict=True) if record), ({}, runs[0])
    )
    text = " ".join(str(asked.get("text", "")).replace("<image>", "").split())
    shots = "".join(images[source.images].figure_html(name, "{size}") for name in asked.get("pictures", ()))
    columns = "".join(
        _column(question, i, run, record, images) for i, (run, record) in enumerate(zip(runs, records, strict=True))
    )
    return (
        f'<details class="card" data-benchmark="{escape(question.benchmark)}"{data}><summary><span class="marks">{marks}'
        f'</span><span class="skill">{escape(question.benchmark)} {escape(question.question_id)}</span>'
        f'<span class="ask">{escape(text or "not stored")}</span></summary><div class="body"><aside>'
        f'<p class="question">{escape(str(asked.get("text", "")))}</p>{shots}<table class="parts"><tr><th>expected</th>'
        f'<td>{escape(str(asked.get("answer", "–")))}</td></tr></table></aside><div class="columns">{columns}</div></div>'
        "</details>"
    )


def _record(question: DiscordantQuestion, index: int, run: ComparedRun) -> dict[str, Any] | None:
    part = run.benchmarks.get(question.benchmark)
    return None if part is None else part.record((question.question_id, question.samples[index]))


def _column(
    question: DiscordantQuestion,
    index: int,
    run: ComparedRun,
    record: dict[str, Any] | None,
    images: dict[Any, EmbeddedImages],
) -> str:
    outcome, part = question.outcomes[index], run.benchmarks.get(question.benchmark)
    key = question.question_id, question.samples[index]
    score = part.scores.get(key) if part else None
    info = part.infos.get(key) if part else None
    facts = [MARKS[outcome] + " " + outcome]
    if score is not None and score.score.value is not None:
        facts.append(f"score {score.score.value:.3g}")
    if part is not None and part.samples > 1:
        facts.append(f"sample {key[1]}")
    if info is not None:
        facts.append(f"{info.completion_tokens:,} tokens, {info.seconds:.1f} s")
    reason = (score.score.failure if score else "") or (info.failure if info else "")
    compared = score.score.extracted if score else None
    final = info.final if info else None
    lines = [("answered", final), ("compared", compared if compared != final else None), ("failed", reason or None)]
    shown = "".join(f"<p>{label}: <b>{escape(value)}</b></p>" for label, value in lines if value is not None)
    body = transcript(record, images[run.images].figure_html) if record else '<p class="hint">Not stored.</p>'
    return (
        f'<div class="run"><h3 class="mark {CLASSES[outcome]}">{escape(run.title)}: {escape(", ".join(facts))}</h3>'
        f"{shown}{body}</div>"
    )
