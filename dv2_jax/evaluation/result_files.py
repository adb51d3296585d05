"""Files made from the results of an evaluation: a table as CSV, and the answers on which two scorers disagree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.agent.tools.base import Tool
from dv2_jax.config import Config
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, Score
from dv2_jax.evaluation.published import published_note
from dv2_jax.evaluation.records import AnswerInfo
from dv2_jax.evaluation.scoring import has_judge, judge_model
from dv2_jax.files import atomic_write

EXAMPLES = 50  # rows per policy and scorer in the file of disagreements
COLUMNS = (
    "benchmark", "scorer", "policy", "row", "value", "low", "high", "n", "failed", "undecided", "clusters", "unanswered",
    "smallest_visible",
)  # fmt: skip


def table_csv(benchmarks: Mapping[str, Mapping[str, Any]], scorer: str) -> str:
    """Returns every row of every table as CSV. It contains no times, so that equal answers give equal bytes.

    Args:
        benchmarks: `benchmarks` of a `results.json`.
        scorer: name of the scorer of `rows`.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, entry in benchmarks.items():
        for used, stages in {scorer: entry["rows"], **entry.get("scorers", {})}.items():
            for stage, rows in stages.items():
                for row in rows:
                    low, high = row["interval"] or ("", "")
                    counts = [row["n"], row["failed"], row.get("undecided", 0), row.get("clusters")]
                    unanswered = entry.get("unanswered", {}).get(stage, 0)
                    counts += [unanswered, row.get("smallest_visible")]
                    writer.writerow([name, used, stage, row["name"], row["value"], low, high, *counts])
    return out.getvalue()


def protocol_line(
    config: Config, benchmark: Benchmark, tools: Sequence[Tool], questions: int, *, refuses_tools: bool = False
) -> str:
    """Returns the line that says how the numbers of a policy on a benchmark came about."""
    names = ", ".join(tool.name for tool in tools) or "none"
    samples = config.eval.samples
    parts = [
        f"scorer {config.eval.scorers[0]}",
        f"tools {names}" + " (every call refused)" * refuses_tools,
        f"judge {judge_model(config.reward)}, rubric {config.eval.judge_rubric}"
        if has_judge(config.reward)
        else "no judge",
        f"{samples} sample{'s' * (samples > 1)} at temperature {config.eval.temperature:g}",
        f"{questions:,} of {benchmark.published_rows:,} rows" if benchmark.published_rows else f"{questions:,} rows",
        benchmark.protocol,
        published_note(benchmark.name),
    ]
    return "; ".join(filter(None, parts))


def usage(infos: Sequence[AnswerInfo], costs: Sequence[float | None], correct: int) -> dict[str, Any]:
    """Returns tokens, seconds, tool calls and, where every cost is known, costs of the answers of a policy."""
    count = max(1, len(infos))
    found = {
        "answers": len(infos),
        "prompt_tokens": sum(info.prompt_tokens for info in infos),
        "completion_tokens": sum(info.completion_tokens for info in infos),
        "tokens_per_correct": sum(info.completion_tokens for info in infos) / correct if correct else None,
        "seconds_per_answer": round(sum(info.seconds for info in infos) / count, 3),
        "tool_calls_per_answer": sum(sum(info.tool_counts.values()) for info in infos) / count,
    }
    if not infos or any(cost is None for cost in costs):
        return found
    total = sum(cost or 0.0 for cost in costs)
    return found | {"cost": total, "cost_per_correct": total / correct if correct else None}


def disagreement(first: Sequence[Score], other: Sequence[Score]) -> dict[str, Any]:
    """Counts how two scorers judge the same answers; `differ` are those with different values or outcomes."""
    pairs = list(zip(first, other, strict=True))
    decided = [(a.value, b.value) for a, b in pairs if a.value is not None and b.value is not None]
    return {
        "answers": len(pairs),
        "equal": sum(not _differ(a, b) for a, b in pairs),
        "higher": sum(b > a for a, b in decided),
        "lower": sum(b < a for a, b in decided),
        "only_one_decides": sum((a.value is None) != (b.value is None) for a, b in pairs),
    }


def disagreement_rows(
    stage: str, scorers: tuple[str, str], first: Sequence[Score], other: Sequence[Score], infos: Sequence[AnswerInfo]
) -> list[dict[str, Any]]:
    """Returns the first `EXAMPLES` answers on which two scorers differ."""
    rows = []
    for a, b, info in zip(first, other, infos, strict=True):
        if _differ(a, b) and len(rows) < EXAMPLES:
            shown = {
                name: {"value": score.value, "outcome": score.outcome, "extracted": score.extracted, "failure": score.failure}
                for name, score in zip(scorers, (a, b), strict=True)
            }  # fmt: skip
            rows.append(
                {"policy": stage, "question_id": info.question_id, "sample": info.sample, "final": info.final, **shown}
            )
    return rows


def _differ(a: Score, b: Score) -> bool:
    return (a.value, a.outcome) != (b.value, b.outcome)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically; without rows, removes the file."""
    if rows:
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)
