"""Run directories written by hand, so that every number of an analysis can be counted by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CROP = "<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>"
SUM = "<code>\n```python\nprint(sum([1, 2]))\n```\n</code>"
SEARCH = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
IMAGE_SEARCH = '<tool_call>\n{"name": "image_search"}\n</tool_call>'


def turn(
    kind: str, text: str = "", status: str = "", observation: str | None = None, images: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns a turn of a record."""
    return {
        "kind": kind, "text": text, "status": status, "observation": observation, "pictures": list(images), "wall_ms": 1.0,
    }  # fmt: skip


def crop(status: str = "ok", images: tuple[str, ...] = ("shown.png",)) -> dict[str, Any]:
    return turn("code", CROP, status, "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```", images)


def compute(stdout: str = "", status: str = "ok") -> dict[str, Any]:
    output = f"Code execution result:\nstdout:\n```\n{stdout}\n```\n\nstderr:\n```\n\n```"
    return turn("code", SUM, status, output)


def search(results: str = "", status: str = "ok") -> dict[str, Any]:
    output = f"<tool_response>\nA Google search for 'Paris' found 1 results:\n\n{results}\n</tool_response>"
    return turn("search", SEARCH, status, output)


def image_search(results: str = "", status: str = "ok") -> dict[str, Any]:
    return turn("image_search", IMAGE_SEARCH, status, f"<tool_response>\nfound\n{results}\n</tool_response>")


def said(text: str = "wrong") -> dict[str, Any]:
    return turn("answer", f"I know.</think>\n<answer>{text}</answer>")


def record(
    name: str,
    *turns: dict[str, Any],
    right: bool | None = False,
    reference: str = "Paris",
    finish: str = "answer",
    tokens: int = 3,
    reward: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Returns a record of format 1; `right=None` has no verdict."""
    parts = {} if right is None else {"accuracy": float(right), "format": 1.0}
    images = fields.pop("images", ("question.png",))
    return {
        "format": 1,
        "id": name,
        "question": {
            "id": name, "skill": "perception", "data_source": "perception", "text": f"Question {name}?",
            "answer": reference, "verifier": "text", "pictures": list(images),
        },
        "token_ids": [0] * (tokens + 2),
        "segments": [{"role": "prompt", "start": 0, "end": 2, "text": "<|im_start|>user\nQ<|im_end|>"}],
        "logprobs": [-0.1] * tokens,
        "versions": [0] * tokens,
        "views": [],
        "turns": list(turns) or [said()],
        "finish": finish,
        "dropped": False,
        "reward": float(bool(right)) if reward is None else reward,
        "reward_parts": parts,
        "tool_calls": sum(bool(one["status"]) for one in turns),
        "step": None,
    } | fields  # fmt: skip


def answered(name: str, sample: int = 0, benchmark: str = "vstar", attempt: int = 1, **fields: Any) -> dict[str, Any]:
    """Returns the field `answer` of a record."""
    return {
        "benchmark": benchmark, "question_id": name, "sample": sample, "attempt": attempt, "prompt_digest": "d",
        "model": "m", "tools": ["code", "search", "image_search"], "failure": "", "final": "wrong",
    } | fields  # fmt: skip


def scored(name: str, value: float | None, sample: int = 0, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    """Returns a line of a score file."""
    scorer = fields.pop("scorer", "official")
    score = {"value": value, "failure": "" if value is not None else "no reply", "is_undecided": False, "cluster": ""}
    return {
        "benchmark": "vstar", "question_id": name, "sample": sample, "answer_attempt": attempt, "scorer": scorer,
        "score": score | fields,
    }  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(
    directory: Path,
    records: dict[str, list[dict[str, Any]]],
    scores: dict[str, list[dict[str, Any]]] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    **results: Any,
) -> Path:
    """Writes trajectories, scores, metrics and results.json of a run; returns its directory."""
    for name, lines in records.items():
        write_lines(directory / "trajectories" / f"{name}.jsonl", [line | {"stage": name} for line in lines])
    for name, lines in (scores or {}).items():
        write_lines(directory / "scores" / f"{name}.jsonl", lines)
    if metrics is not None:
        write_lines(directory / "metrics.jsonl", metrics)
    (directory / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return directory
