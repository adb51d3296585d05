"""Every Eval Ever: the shared schema of evaluation results (arXiv 2606.14516), version 0.3.0.

Files are written where the schema's data store keeps them: `data/BENCHMARK/DEVELOPER/MODEL/UUID.json` with the table of a
policy, and `UUID_samples.jsonl` with one line per answer. Answers without a verdict are lines with an `error`, score 0 and
the outcome in `metadata`, since the schema requires a score; the table leaves them out.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dv2_jax.evaluation.exports.export_format import ExportFormat, ExportOptions, register_export_format
from dv2_jax.evaluation.exports.exported_run import ExportedAnswer, ExportedEvaluation, ExportedRun, Message
from dv2_jax.evaluation.exports.inspect_log import LogTotals
from dv2_jax.evaluation.exports.streamed_file import streamed_file
from dv2_jax.evaluation.statistics import ClusterTotals
from dv2_jax.files import atomic_write

SCHEMA = "0.3.0"
ORGANIZATION = "dv2_jax"  # developer of models that are named by a local checkpoint
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@register_export_format
class EveryEvalEver(ExportFormat):
    """Writes aggregates and instance files."""

    name = "every_eval_ever"

    def write(self, run: ExportedRun, output: Path, options: ExportOptions) -> list[Path]:
        paths = []
        for evaluation in run.evaluations:
            totals = LogTotals.of(evaluation)
            model = model_id(evaluation)
            developer, _, name = model.partition("/")
            folder = Path("data") / _safe(evaluation.benchmark) / _safe(developer) / _safe(name)
            identity = f"{evaluation.benchmark}/{model}/{evaluation.stage}/{totals.first:.3f}"
            stem = _uuid(identity)
            samples = folder / f"{stem}_samples.jsonl"
            evaluation_id = f"{evaluation.benchmark}/{model}/{totals.first:.3f}"
            lines = _write_samples(evaluation, output / samples, evaluation_id, model)
            document = aggregate_document(evaluation, totals, evaluation_id, model)
            document["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": samples.as_posix(),
                "hash_algorithm": "sha256",
                "checksum": _digest(output / samples),
                "total_rows": lines,
            }
            path = output / folder / f"{stem}.json"
            atomic_write(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
            paths += [path, output / samples]
        return paths


def model_id(evaluation: ExportedEvaluation) -> str:
    """Returns an id with a developer; that of a local checkpoint names the policy of this project."""
    model = evaluation.model
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists():
        return model
    name = _safe(model.rstrip("/").rsplit("/", 1)[-1])
    return f"{ORGANIZATION}/{name}" + ("" if evaluation.stage == "evaluate" else f"-{_safe(evaluation.stage)}")


def aggregate_document(
    evaluation: ExportedEvaluation, totals: LogTotals, evaluation_id: str, model: str
) -> dict[str, Any]:
    """Returns the document of a table: one result per row."""
    benchmark = evaluation.benchmark
    config: Mapping[str, Any] = evaluation.run.config
    is_endpoint = bool(config.get("eval", {}).get("endpoint"))
    return {
        "schema_version": SCHEMA,
        "evaluation_id": evaluation_id,
        "evaluation_timestamp": f"{totals.first:.0f}",
        "retrieved_timestamp": f"{totals.last:.0f}",
        "source_metadata": {
            "source_name": f"dv2_jax run {evaluation.run.directory.name}",
            "source_type": "evaluation_run",
            "source_organization_name": ORGANIZATION,
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "dv2_jax", "version": version("dv2_jax")},
        "model_info": {
            "name": evaluation.title,
            "id": model,
            "developer": model.partition("/")[0],
            "additional_details": {
                "deployment_type": "unknown" if is_endpoint else "self_deployed",
                "model_availability": "unknown",
                "init": evaluation.model,
                "tools": ",".join(evaluation.tools),
            },
        },
        "evaluation_results": [
            {
                "evaluation_result_id": f"{evaluation_id}#{row['name']}",
                "evaluation_name": benchmark if row["name"] == "overall" else f"{benchmark} {row['name']}",
                "source_data": {"dataset_name": benchmark, "source_type": "other"},
                "metric_config": {
                    "evaluation_description": f"score by the rule of the benchmark ({evaluation.scorer})",
                    "metric_id": "accuracy",
                    "metric_name": "Accuracy",
                    "metric_kind": "accuracy",
                    "metric_unit": "proportion",
                    "lower_is_better": False,
                    "score_type": "continuous",
                    "min_score": 0.0,
                    "max_score": 1.0,
                },
                "score_details": {
                    "score": row["value"],
                    "details": {"failed": str(row["failed"]), "undecided": str(row.get("undecided", 0))},
                    "uncertainty": _uncertainty(row),
                },
                "generation_config": {
                    "generation_args": {
                        "temperature": float(config.get("eval", {}).get("temperature", 0.0)),
                        "reasoning": True,
                        "agentic_eval_config": {"available_tools": [{"name": tool} for tool in evaluation.tools]},
                    },
                    "additional_details": {},
                },
            }
            for row in result_rows(evaluation, totals)
        ],
    }


def result_rows(evaluation: ExportedEvaluation, totals: LogTotals) -> list[Mapping[str, Any]]:
    """Returns the rows of the result table that have a value; the mean of the scores for runs without one."""
    rows = [row for row in evaluation.rows if row["value"] is not None]
    if rows or not totals.values:
        return rows
    sums = ClusterTotals.of(totals.values, totals.clusters)
    n = len(totals.values)
    return [{"name": "overall", "value": sums.mean, "interval": sums.interval(), "n": n, "failed": totals.answers - n}]


def _uncertainty(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": row["n"]}
    if row.get("interval"):
        low, high = row["interval"]
        found["confidence_interval"] = {
            "lower": low,
            "upper": high,
            "confidence_level": 0.95,
            "method": "wilson, clustered",
        }
    return found


def _write_samples(evaluation: ExportedEvaluation, path: Path, evaluation_id: str, model: str) -> int:
    lines = 0
    with streamed_file(path) as file:
        for answer in evaluation.answers():
            line = sample_line(answer, evaluation, evaluation_id, model)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            lines += 1
    return lines


def sample_line(
    answer: ExportedAnswer, evaluation: ExportedEvaluation, evaluation_id: str, model: str
) -> dict[str, Any]:
    """Returns the line of one answer."""
    question = answer.record["question"]
    messages = answer.messages()
    raw = question["text"].replace("<image>", "").strip()
    reference = "".join(answer.references)
    tokens = {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    seconds = answer.info.get("seconds")
    return {
        "schema_version": SCHEMA,
        "evaluation_id": evaluation_id,
        "model_id": model,
        "evaluation_name": evaluation.benchmark,
        "evaluation_result_id": f"{evaluation_id}#overall",
        "sample_id": answer.question_id + (f"#{answer.sample}" if answer.sample else ""),
        "sample_hash": hashlib.sha256((raw + reference).encode()).hexdigest(),
        "interaction_type": "agentic",
        "input": {"raw": raw, "reference": answer.references},
        "output": None,
        "messages": [_message(index, message) for index, message in enumerate(messages)],
        "answer_attribution": [
            {
                "turn_idx": max(i for i, message in enumerate(messages) if i == 0 or message.role == "assistant"),
                "source": "messages[turn_idx].content",
                "extracted_value": answer.prediction,
                "extraction_method": "regex" if answer.final is not None else "custom",
                "is_terminal": True,
            }
        ],
        "evaluation": {
            "score": answer.value or 0.0,
            "is_correct": answer.outcome == "correct",
            "num_turns": len(answer.record["turns"]),
            "tool_calls_count": answer.record["tool_calls"],
        },
        "token_usage": tokens,
        "performance": {"latency_ms": 1000 * seconds} if seconds else None,
        "error": None if answer.value is not None else answer.failure,
        "metadata": {"outcome": answer.outcome, "skill": question["skill"], "finish": str(answer.record.get("finish"))},
    }


def _message(index: int, message: Message) -> dict[str, Any]:
    converted: dict[str, Any] = {
        "turn_idx": index,
        "role": message.role,
        "content": "".join(f"[image {name}]\n" for name in message.images) + message.text,
        "reasoning_trace": message.reasoning or None,
    }
    if message.role == "assistant" and message.call_id:
        call = {"id": message.call_id, "name": message.tool, "arguments": dict(message.arguments)}
        converted["tool_calls"] = [call]
    if message.role == "tool":
        converted["tool_call_id"] = [message.call_id]
    return converted


def _uuid(text: str) -> str:
    """Returns a UUID in the form of version 4 that depends on `text` alone: exporting again replaces the files."""
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4))


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-. ") or "unnamed"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
