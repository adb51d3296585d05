"""Reads exported logs with inspect-ai and compares counts and scores with the run: read_inspect.py RUN LOG...

Runs in an environment that has inspect-ai, and not this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_samples
from inspect_ai.scorer import value_to_float


def check(run: Path, path: Path) -> str:
    log = read_eval_log(str(path))
    header = read_eval_log(str(path), header_only=True)
    assert log.status == header.status == "success" and log.samples is not None
    stage = path.stem.removesuffix(f"_{log.eval.task}")
    results = json.loads((run / "results.json").read_text())
    expected = next(row for row in results["benchmarks"][log.eval.task]["rows"][stage] if row["name"] == "overall")
    (score,) = log.results.scores
    values = [value_to_float()(sample.scores[score.name].value) for sample in log.samples if sample.scores]
    values = [value for value in values if value == value]  # NaN: undecided
    assert len(values) == expected["n"] == log.results.completed_samples == score.scored_samples, (values, expected)
    assert (
        len(log.samples)
        == log.results.total_samples
        == expected["n"] + expected["failed"] + expected.get("undecided", 0)
    )
    mean = sum(values) / len(values)
    assert abs(mean - expected["value"]) < 1e-9 and abs(score.metrics["accuracy"].value - mean) < 1e-9
    assert header.results.scores[0].metrics["accuracy"].value == score.metrics["accuracy"].value
    turns = [message for sample in log.samples for message in sample.messages]
    calls = sum(len(message.tool_calls or []) for message in turns if message.role == "assistant")
    assert calls == sum(sample.metadata["tool_calls"] for sample in log.samples)
    one = read_eval_log_sample(str(path), log.samples[0].id, epoch=log.samples[0].epoch)
    assert one.messages and one.output.completion == log.samples[0].output.completion
    assert sum(1 for _ in read_eval_log_samples(str(path), all_samples_required=False)) == len(log.samples)
    return f"{path.name}: {len(log.samples)} samples, {calls} calls, accuracy {mean:.4f}"


if __name__ == "__main__":
    run, *logs = map(Path, sys.argv[1:])
    assert logs, "no logs"
    for log in logs:
        print(check(run, log))
