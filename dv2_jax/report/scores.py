"""Renders the result tables of benchmarks: value, 95 % interval, scored and failed answers per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SCORE_HEADINGS = ("score", "95 % interval", "n", "failed", "undecided")


def score_cells(row: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Formats a row of a benchmark under `SCORE_HEADINGS`; dashes for what a policy does not have."""
    if row is None:
        return ("–",) * len(SCORE_HEADINGS)
    value = "–" if row["value"] is None else f"{row['value']:.1%}"
    interval = "–" if row["interval"] is None else "{:.1%} to {:.1%}".format(*row["interval"])
    return value, interval, f"{row['n']:,}", f"{row['failed']:,}", f"{row.get('undecided', 0):,}"


def score_rows(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any] | None]]:
    """Returns each row of a benchmark's table by name, as one element per policy of `rows`; None where it has none."""
    names = dict.fromkeys(row["name"] for stage in rows.values() for row in stage)
    return {name: [_find(stage, name) for stage in rows.values()] for name in names}


def _find(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["name"] == name), None)


def benchmark_notes(benchmark: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """Returns lines about a benchmark's table: the protocol of each policy, its use of tokens, what is unanswered."""
    protocols: Mapping[str, str] = benchmark.get("protocols", {})
    lines = []
    if protocols and len(set(protocols.values())) == 1:
        lines.append(f"protocol: {next(iter(protocols.values()))}")
    else:
        lines += [f"{titles.get(stage, stage)}: {line}" for stage, line in protocols.items()]
    for stage, used in benchmark.get("usage", {}).items():
        lines.append(f"{titles.get(stage, stage)}: {_usage(used)}")
    for stage, count in benchmark.get("unanswered", {}).items():
        lines.append(f"{titles.get(stage, stage)}: {count:,} answers are missing; the same command obtains them")
    for stage, scorers in benchmark.get("disagreements", {}).items():
        for scorer, found in scorers.items():
            lines.append(
                f"{titles.get(stage, stage)}: scorer {scorer} agrees on {found['equal']:,} of {found['answers']:,} answers;"
                f" it scores {found['higher']:,} higher, {found['lower']:,} lower; {found['only_one_decides']:,} are decided"
                " by one scorer alone"
            )
    for stage, agreement in benchmark.get("human_labels", {}).items():
        lines += [f"{titles.get(stage, stage)}: {line}" for line in agreement["lines"]]
    return [*lines, *_visibility(benchmark)]


def _visibility(benchmark: Mapping[str, Any]) -> list[str]:
    """Returns the sentence about the smallest difference that the overall row of a benchmark can show."""
    rows = [row for stage in benchmark["rows"].values() for row in stage if row["name"] == "overall"]
    visible = [row["smallest_visible"] for row in rows if row.get("smallest_visible") is not None]
    if not visible:
        return []
    return [
        f"paired differences below {100 * max(visible):.1f} points are not visible at this n, if two runs differ on 20 % of"
        " the questions; python -m dv2_jax.compare tests two runs"
    ]


def _usage(used: Mapping[str, Any]) -> str:
    tokens = f"{used['prompt_tokens']:,} prompt and {used['completion_tokens']:,} sampled tokens"
    parts = [
        tokens,
        f"{used['seconds_per_answer']:.3g} s and {used['tool_calls_per_answer']:.2f} tool calls per answer",
    ]
    if used.get("tokens_per_correct") is not None:
        parts.append(f"{used['tokens_per_correct']:,.0f} sampled tokens per correct answer")
    if "cost" in used:
        each = (
            "no correct answer"
            if used["cost_per_correct"] is None
            else f"{used['cost_per_correct']:.4g} per correct answer"
        )
        parts.append(f"cost {used['cost']:.4g}, {each}")
    return "; ".join(parts)


def benchmark_scores(summary: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Renders one table per benchmark of a `results.json`; nothing for runs without benchmarks."""
    benchmarks: Mapping[str, Mapping[str, Any]] = summary.get("benchmarks", {})
    return "".join(
        _table(name, benchmark, titles) + _further_scorers(name, benchmark, titles)
        for name, benchmark in benchmarks.items()
    )


def _further_scorers(name: str, benchmark: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Renders the tables of the scorers after the first, without the notes that the first table has."""
    notes = dict.fromkeys(("protocols", "usage", "unanswered", "disagreements", "error", "source"))
    shown = {key: value for key, value in benchmark.items() if key not in notes}
    scorers: Mapping[str, Any] = benchmark.get("scorers", {})
    return "".join(
        _table(f"{name}, scorer {scorer}", shown | {"rows": rows}, titles) for scorer, rows in scorers.items()
    )


def _table(name: str, benchmark: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    rows = {titles.get(stage, stage): stage_rows for stage, stage_rows in benchmark["rows"].items()}
    first = [' class="first"', *[""] * (len(SCORE_HEADINGS) - 1)]
    groups = "".join(f'<th class="first" colspan="{len(SCORE_HEADINGS)}">{escape(title)}</th>' for title in rows)
    heads = "".join(f"<th{mark}>{text}</th>" for _ in rows for mark, text in zip(first, SCORE_HEADINGS, strict=True))
    body = []
    for row_name, found in score_rows(rows).items():
        cells = "".join(
            f"<td{mark}>{cell}</td>" for row in found for mark, cell in zip(first, score_cells(row), strict=True)
        )
        mark = "overall" * (row_name == "overall")
        body.append(f'<tr class="{mark}"><td>{escape(row_name)}</td>{cells}</tr>')
    source = f" from {escape(benchmark['source'])}" if benchmark.get("source") else ""
    error = f'<p class="hint">{escape(benchmark["error"])}</p>' if benchmark.get("error") else ""
    notes = "".join(f'<p class="hint">{escape(line)}</p>' for line in benchmark_notes(benchmark, titles))
    return (
        f'<h2>Benchmark {escape(name)}</h2><p class="hint">{benchmark["questions"]:,} questions{source}. Failed and undecided'
        f" answers, which had no verdict, do not count in the score.</p>{error}{notes}"
        f'<div class="scroll"><table class="results"><thead><tr><th></th>{groups}</tr><tr><th>row</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
