"""Human verdicts on answers: agreement of the scorer with humans, and the accuracy corrected for the scorer's errors.

`eval.human_labels` names a JSONL file with one label per line::

    {"benchmark": "vstar", "question_id": "17", "correct": true, "annotator": "mk", "answer": "B"}

`sample` (0 by default) chooses one of several answers to a question, `stage` another policy than that of `model.init`.
With `answer`, the final answer that the human saw, a label is used only while that is the answer; without it, a label is
used for whatever answer is stored now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.config import ConfigError
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.statistics import ClusterTotals, JudgeQuality, corrected_accuracy, krippendorff_alpha

KEY = "eval.human_labels"
SHOWN = 5  # ids in a message
_TYPES: dict[str, tuple[type, str]] = {
    "benchmark": (str, "a string"), "question_id": (str, "a string"), "correct": (bool, "true or false"),
    "sample": (int, "an integer from 0"), "annotator": (str, "a string"), "stage": (str, "a string"),
    "answer": (str, "a string"),
}  # fmt: skip
_REQUIRED = ("benchmark", "question_id", "correct")


@dataclass(frozen=True)
class HumanLabel:
    """One verdict of one human. `stage` is empty for the policy of `model.init`; `answer` is None if not stated."""

    benchmark: str
    question_id: str
    correct: bool
    sample: int = 0
    annotator: str = ""
    stage: str = ""
    answer: str | None = None


def read_labels(path: str | Path) -> list[HumanLabel]:
    """Reads a file of labels.

    Raises:
        ConfigError: the file does not exist, a line is not a label, or an annotator labels an answer twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{KEY}: there is no file {str(path)!r}")
    labels: list[HumanLabel] = []
    seen: dict[tuple[str, str, str, int, str], int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        label = _label(line, f"{KEY}: {path}: line {number}")
        key = label.benchmark, label.stage, label.question_id, label.sample, label.annotator
        if key in seen:
            raise ConfigError(
                f"{KEY}: {path}: line {number} labels question {label.question_id!r} again, as line {seen[key]} did: remove"
                " one, or set annotator to the names of different people"
            )
        seen[key] = number
        labels.append(label)
    if not labels:
        raise ConfigError(f"{KEY}: {path} has no labels: write one JSON object per line")
    return labels


def _label(line: str, place: str) -> HumanLabel:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place}: no JSON object ({error}): write one per line") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: {line.strip()[:40]!r} is no JSON object")
    if missing := [name for name in _REQUIRED if name not in values]:
        raise ConfigError(f"{place}: the field {missing[0]} is missing; there are {', '.join(values) or 'none'}")
    if unknown := [name for name in values if name not in _TYPES]:
        raise ConfigError(f"{place}: unknown field {unknown[0]}: use {', '.join(_TYPES)}")
    if isinstance(values["question_id"], int) and not isinstance(values["question_id"], bool):
        values["question_id"] = str(values["question_id"])  # as published files write their indices
    for name, value in values.items():
        kind, wanted = _TYPES[name]
        if type(value) is not kind or (name == "sample" and value < 0):
            raise ConfigError(f"{place}: {name} = {value!r}: use {wanted}")
    return HumanLabel(**values)


def label_agreement(
    labels: Sequence[HumanLabel],
    benchmark: str,
    stage: str,
    scores: Sequence[Score],
    finals: Mapping[tuple[str, int], str | None] | None = None,
    *,
    is_main: bool = True,
) -> dict[str, Any] | None:
    """Compares the verdicts on one policy's answers with the labels of humans; JSON types for `results.json`.

    Several labels of one answer count by majority; ties are left out. An answer with partial credit is accepted if it has
    all of it.

    Args:
        scores: all scores of the policy on the benchmark.
        finals: final answers by (question id, sample), to find labels of other answers.
        is_main: True for the policy of `model.init`, which labels without a stage mean.

    Returns:
        None without labels for this benchmark and policy.
    """
    stages = {stage, ""} if is_main else {stage}
    own = [label for label in labels if label.benchmark == benchmark and label.stage in stages]
    if not own:
        return None
    by_key = {(score.question_id, score.sample): score for score in scores}
    votes: dict[tuple[str, int], list[bool]] = {}
    unknown, other_answers = [], 0
    for label in own:
        key = label.question_id, label.sample
        if key not in by_key:
            unknown.append(label.question_id if not label.sample else f"{label.question_id}#{label.sample}")
        elif _is_other(label, (finals or {}).get(key)):
            other_answers += 1
        else:
            votes.setdefault(key, []).append(label.correct)
    decided = {key: 2 * sum(found) > len(found) for key, found in votes.items() if 2 * sum(found) != len(found)}
    used = {key: verdict for key, verdict in decided.items() if by_key[key].value is not None}
    quality = JudgeQuality.of([by_key[key].outcome == "correct" for key in used], list(used.values()))
    scored = [score for score in scores if score.value is not None]
    entry = {
        "labels": len(used),
        "annotators": len({label.annotator for label in own}),
        **{name: getattr(quality, name) for name in ("agreement", "sensitivity", "specificity", "kappa")},
        "intervals": {name: list(interval) for name, interval in quality.intervals().items()},
        "alpha": krippendorff_alpha(list(votes.values())),
        **_corrected(scored, quality),
        "ties": len(votes) - len(decided),
        "without_verdict": len(decided) - len(used),
        "other_answers": other_answers,
        "unknown": sorted(set(unknown)),
    }
    return entry | {"lines": agreement_lines(entry)}


def _is_other(label: HumanLabel, final: str | None) -> bool:
    return label.answer is not None and final is not None and label.answer.strip() != final.strip()


def _corrected(scored: Sequence[Score], quality: JudgeQuality) -> dict[str, Any]:
    if not scored:
        return {"accuracy": None, "corrected": None, "corrected_interval": None, "reason": "no answer has a score"}
    clusters = [score.cluster or score.question_id for score in scored]
    totals = ClusterTotals.of([float(score.outcome == "correct") for score in scored], clusters)
    n = totals.effective_n()
    found = corrected_accuracy(totals.mean * n, n, quality)
    reason = ""
    if found is None:
        missing = [name for name, count in (("correct", quality.right), ("wrong", quality.wrong)) if not count]
        reason = (
            f"no label says that an answer is {' or '.join(missing)}"
            if missing
            else "the scorer agrees with humans no more than by chance"
        )
    return {
        "accuracy": totals.mean,
        "corrected": None if found is None else found[0],
        "corrected_interval": None if found is None else list(found[1]),
        "reason": reason,
    }


def agreement_lines(entry: Mapping[str, Any]) -> list[str]:
    """Returns the lines under a table that describe an agreement of `label_agreement`."""
    lines = []
    if entry["labels"]:
        parts = [
            f"{name} {_with_interval(entry[name], entry['intervals'][name])}"
            for name in ("agreement", "sensitivity", "specificity")
        ]
        if entry["kappa"] is not None:
            parts.append(f"kappa {entry['kappa']:.2f}")
        if entry["alpha"] is not None:
            parts.append(f"alpha among {entry['annotators']} annotators {entry['alpha']:.2f}")
        lines.append(f"{entry['labels']:,} human labels: {', '.join(parts)}")
    if entry["corrected"] is not None:
        corrected = _with_interval(entry["corrected"], entry["corrected_interval"])
        lines.append(f"accuracy corrected for the scorer's errors: {corrected} (as scored: {entry['accuracy']:.1%})")
    else:
        lines.append(f"no corrected accuracy: {entry['reason']}")
    notes = [
        (entry["ties"], "answers on which humans are divided"),
        (entry["without_verdict"], "labeled answers without a score"),
        (entry["other_answers"], "labels of another answer than the stored one"),
    ]
    if left_out := [f"{count:,} {text}" for count, text in notes if count]:
        lines.append(f"human labels left out: {', '.join(left_out)}")
    if unknown := entry["unknown"]:
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        lines.append(f"human labels of unknown questions: {', '.join(unknown[:SHOWN])}{more}")
    return lines


def _with_interval(value: float | None, interval: Sequence[float]) -> str:
    return "–" if value is None else "{:.1%} ({:.1%} to {:.1%})".format(value, *interval)


def check_labels(labels: Sequence[HumanLabel], benchmarks: Sequence[str]) -> list[str]:
    """Returns a sentence for each benchmark of the labels that is not evaluated."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[label.benchmark] = counts.get(label.benchmark, 0) + 1
    return [
        f"{KEY}: {count:,} labels are for {name!r}, which is not evaluated ({', '.join(benchmarks)} are)"
        for name, count in counts.items()
        if name not in benchmarks
    ]
