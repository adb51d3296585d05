"""Writes run directories of small evaluations in the format of `evaluation.records`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from dv2_jax.config import RewardConfig
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.records import AnswerInfo, JudgeReply, ScoreRecord
from dv2_jax.evaluation.scoring import score_basis
from dv2_jax.telemetry.stage_titles import benchmark_stage
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER, image_file_name

FAILED = None


def png(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, "PNG")
    return out.getvalue()


def write_evaluation(
    directory: Path,
    outcomes: Mapping[str, float | None | list[float | None]],
    *,
    benchmark: str = "embedded",
    stage: str = "evaluate",
    clusters: Mapping[str, str] | None = None,
    scorer: str = "official",
    tools: tuple[str, ...] = ("code",),
    digest: str = "d",
    attempt: int = 1,
    tokens: int = 100,
    rows: list[dict] | None = None,
    judged: tuple[str, ...] = (),
    basis: str = "",
) -> Path:
    """Appends the answers of a policy; `outcomes` has the score of each question, or a list of those of its samples."""
    name = benchmark_stage(stage, benchmark, is_first=benchmark == "embedded")
    images = directory / "trajectories" / IMAGE_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    (directory / "scores").mkdir(exist_ok=True)
    image = image_file_name(png())
    (images / image).write_bytes(png())
    answers, scores = [], []
    for question, found in outcomes.items():
        for sample, value in enumerate(found if isinstance(found, list) else [found]):
            final = "unknown" if value is None else f"answer {value:g} of {directory.name}"
            failure = "the endpoint gave no reply" if value is None else ""
            info = AnswerInfo(
                benchmark,
                question,
                sample,
                attempt,
                digest,
                "model",
                tools,
                failure,
                final,
                50,
                tokens,
                1.5,
                {"crop": 2},
            )
            answers.append(record(info, image, stage))
            if value is not None:
                cluster = (clusters or {}).get(question, "")
                score = Score(value, group="a", question_id=question, sample=sample, cluster=cluster, extracted=final)
                replies = (JudgeReply("judge", "consistency", "p", "Yes"),) * (question in judged)
                shown = score_basis(info, RewardConfig()) if basis == "own" else basis
                line = ScoreRecord(benchmark, question, sample, attempt, scorer, score, replies, shown)
                scores.append(line.to_dict())
    for folder, lines in (("trajectories", answers), ("scores", scores)):
        with open(directory / folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    results = {
        "stages": [{"name": stage, "title": "result" if stage == "evaluate" else stage, "init": "model"}],
        stage: {"overall": {"accuracy": 0.5}},
        "benchmarks": {benchmark: {"source": "x", "questions": len(outcomes), "rows": {stage: rows or []}}},
    }
    (directory / "results.json").write_text(json.dumps(results))
    config = {"eval": {"scorers": ["official"], "temperature": 0.0}, "reward": asdict(RewardConfig())}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def record(info: AnswerInfo, image: str, stage: str) -> dict:
    """Returns a trajectory record of an endpoint, which has turns and no token ids."""
    turns = [
        {"kind": "code", "text": "<think>I crop.</think>\n<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>",
         "observation": "Code execution result: done", "pictures": [image], "status": "ok", "wall_ms": 12.0},
        {"kind": "answer", "text": f"<answer>{info.final}</answer>", "observation": "", "pictures": [], "status": "",
         "wall_ms": 0.0},
    ]  # fmt: skip
    return {
        "format": 1, "id": f"{info.question_id}#{info.sample}", "stage": stage, "step": None, "time": 1.0,
        "question": {"id": info.question_id, "skill": "perception", "data_source": "perception",
                     "text": f"Question <b>{info.question_id}</b>?", "answer": "7", "verifier": "text",
                     "pictures": [image]},
        "token_ids": [], "segments": [], "logprobs": [], "versions": [], "views": [], "turns": turns,
        "finish": "answer", "dropped": bool(info.failure), "reward": None, "reward_parts": {}, "tool_calls": 1,
        "answer": info.to_dict(),
    }  # fmt: skip
