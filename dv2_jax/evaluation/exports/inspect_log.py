"""Inspect logs: one `.json` log per policy and benchmark, which `inspect_ai.log.read_eval_log` and `inspect view` read.

Format: the JSON log of inspect-ai 0.3 (schema version 2). A sample is one answer; its epoch is the sample number plus 1.
Questions without an answer are samples with an error and without a score, as Inspect stores failed samples; answers without
a verdict have a score of NaN, which Inspect counts as unscored. Neither counts in the metrics.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dv2_jax.evaluation.exports.export_format import ExportFormat, ExportOptions, register_export_format
from dv2_jax.evaluation.exports.exported_run import ExportedAnswer, ExportedEvaluation, ExportedRun, Message
from dv2_jax.evaluation.exports.streamed_file import streamed_file
from dv2_jax.evaluation.statistics import ClusterTotals

SCHEMA_VERSION = 2


@dataclass
class LogTotals:
    """Sums over the answers of a log, from the first of two passes."""

    values: list[float] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    answers: int = 0
    samples: int = 1
    first: float = math.inf
    last: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    questions: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, evaluation: ExportedEvaluation) -> LogTotals:
        """Reads all answers once."""
        totals = cls()
        for answer in evaluation.answers():
            totals.answers += 1
            totals.samples = max(totals.samples, answer.sample + 1)
            totals.first, totals.last = min(totals.first, answer.time), max(totals.last, answer.time)
            totals.input_tokens += answer.input_tokens
            totals.output_tokens += answer.output_tokens
            totals.questions.add(answer.question_id)
            if answer.value is not None:
                totals.values.append(answer.value)
                totals.clusters.append(answer.cluster)
        return totals


@register_export_format
class InspectLog(ExportFormat):
    """Writes logs of Inspect."""

    name = "inspect"

    def write(self, run: ExportedRun, output: Path, options: ExportOptions) -> list[Path]:
        paths = []
        for evaluation in run.evaluations:
            totals = LogTotals.of(evaluation)
            path = output / f"{evaluation.file_stem}.json"
            with streamed_file(path) as file:
                head = log_head(evaluation, totals)
                file.write(json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}") + ',\n"samples": [\n')
                for index, answer in enumerate(evaluation.answers()):
                    sample = log_sample(answer, evaluation, options.with_images)
                    file.write((",\n" if index else "") + json.dumps(sample, ensure_ascii=False))
                file.write("\n]\n}\n")
            paths.append(path)
        return paths


def log_head(evaluation: ExportedEvaluation, totals: LogTotals) -> dict[str, Any]:
    """Returns everything of a log but its samples."""
    config, model = evaluation.run.config, evaluation.model
    created, ended = iso_time(totals.first), iso_time(totals.last)
    digest = hashlib.sha256(f"{evaluation.run.directory.resolve()}|{evaluation.name}|{created}".encode()).hexdigest()
    usage = {
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "total_tokens": totals.input_tokens + totals.output_tokens,
    }
    return {
        "version": SCHEMA_VERSION,
        "status": "success",
        "eval": {
            "eval_id": digest[:22],
            "run_id": digest[22:44],
            "task_id": digest[:22],
            "created": created,
            "task": evaluation.benchmark,
            "task_version": 0,
            "dataset": {
                "name": evaluation.benchmark,
                "samples": len(totals.questions),
                "sample_ids": sorted(totals.questions),
                "shuffled": False,
            },
            "model": model,
            "model_generate_config": {
                "temperature": config.get("eval", {}).get("temperature", 0.0),
            },
            "config": {"epochs": totals.samples},
            "packages": {"dv2_jax": version("dv2_jax")},
            "metadata": {"policy": evaluation.title, "tools": evaluation.tools, "run": evaluation.run.directory.name},
        },
        "plan": {"name": "plan", "steps": [{"solver": "dv2_jax", "params": {}}]},
        "results": {
            "total_samples": totals.answers,
            "completed_samples": len(totals.values),
            "scores": [_log_score(evaluation, totals)],
        },
        "stats": {"started_at": created, "completed_at": ended, "model_usage": {model: usage}},
    }


def _log_score(evaluation: ExportedEvaluation, totals: LogTotals) -> dict[str, Any]:
    """Returns the aggregated score: the mean over scored answers, and the rows of the benchmark's own table."""
    metrics: dict[str, Any] = {}
    if totals.values:
        sums = ClusterTotals.of(totals.values, totals.clusters)
        metrics["accuracy"] = {"name": "accuracy", "value": sums.mean, "params": {}}
        if math.isfinite(error := sums.standard_error()):
            metrics["stderr"] = {"name": "stderr", "value": error, "params": {"cluster": "question or image"}}
    for row in evaluation.rows:
        if row["value"] is not None:
            facts = {"n": row["n"], "failed": row["failed"], "interval": row["interval"]}
            metrics[f"row: {row['name']}"] = {"name": f"row: {row['name']}", "value": row["value"], "metadata": facts}
    return {
        "name": evaluation.scorer,
        "scorer": evaluation.scorer,
        "scored_samples": len(totals.values),
        "unscored_samples": totals.answers - len(totals.values),
        "params": {},
        "metrics": metrics,
    }


def log_sample(answer: ExportedAnswer, evaluation: ExportedEvaluation, with_images: bool) -> dict[str, Any]:
    """Returns one answer as a sample of a log."""
    question = answer.record["question"]
    messages = [_log_message(message, evaluation.run, with_images) for message in answer.messages()]
    prompt = [message for message in messages if message["role"] in ("system", "user")]
    first_turn = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    reply = {"role": "assistant", "content": answer.prediction, "source": "generate"}
    usage = {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    model = answer.info.get("model") or evaluation.model
    limit = answer.record.get("finish") in ("max_tokens", "turn_limit")
    choice = {"message": reply, "stop_reason": "max_tokens" if limit else "stop"}
    sample = {
        "id": answer.question_id,
        "epoch": answer.sample + 1,
        "input": messages[:first_turn] or prompt,
        "target": answer.references,
        "messages": messages,
        "output": {"model": model, "choices": [choice], "completion": answer.prediction, "usage": usage},
        "model_usage": {model: usage},
        "metadata": {
            "skill": question["skill"],
            "outcome": answer.outcome,
            "finish": answer.record.get("finish"),
            "tool_calls": answer.record["tool_calls"],
            "images": question["pictures"],
            "attempt": answer.info.get("attempt", 1),
        },
        "total_time": answer.info.get("seconds"),
        "completed_at": iso_time(answer.time),
    }
    if not answer.has_answer:
        sample["error"] = {"message": answer.failure, "traceback": "", "traceback_ansi": ""}
        return sample
    details = (answer.score or {}).get("score") or {}
    facts = {name: details[name] for name in ("group", "extracted", "details") if details.get(name)}
    facts |= {"scorer": (answer.score or {}).get("scorer", evaluation.scorer)}
    score = {"value": log_value(answer.value), "answer": answer.prediction, "metadata": facts}
    if answer.value is None:
        score |= {"explanation": answer.failure, "reason": answer.outcome}
    return sample | {"scores": {evaluation.scorer: score}}


def log_value(value: float | None) -> str | float:
    """Returns C and I for right and wrong, the number for partial credit, and NaN, Inspect's unscored, without a verdict."""
    if value is None:
        return math.nan
    return "C" if value == 1 else "I" if value == 0 else value


def _log_message(message: Message, run: ExportedRun, with_images: bool) -> dict[str, Any]:
    parts: list[dict[str, str]] = []
    if message.reasoning:
        parts.append({"type": "reasoning", "reasoning": message.reasoning})
    parts += [{"type": "image", "image": data} for data in _images(message.images, run, with_images)]
    names = "" if with_images else "".join(f"[image {name}]\n" for name in message.images)
    text = names + message.text
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    converted: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "assistant":
        converted["source"] = "generate"
        if message.call_id:
            call = {"id": message.call_id, "function": message.tool, "arguments": dict(message.arguments)}
            converted["tool_calls"] = [call | {"type": "function"}]
    if message.role == "tool":
        converted |= {"tool_call_id": message.call_id, "function": message.tool}
    return converted


def _images(names: Sequence[str], run: ExportedRun, with_images: bool) -> Iterator[str]:
    if not with_images:
        return
    for name in names:
        path = run.image(name)
        if path.is_file():
            kind = mimetypes.guess_type(name)[0] or "image/png"
            yield f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def iso_time(seconds: float) -> str:
    """Returns a time as ISO 8601 in UTC; the epoch for an unknown one."""
    return datetime.fromtimestamp(seconds if math.isfinite(seconds) else 0.0, UTC).isoformat(timespec="seconds")
