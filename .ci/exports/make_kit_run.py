"""Writes a small V* file in the published format and a run that answered it: make_kit_run.py FOLDER.

The scores are those of the benchmark's official rule, so that another scorer of the same predictions must agree.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path

from PIL import Image

from dv2_jax.config import Config, RewardConfig
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.records import AnswerInfo, ScoreRecord
from dv2_jax.rollout.question_sources import read_rows

OPTIONS = {"A": "red", "B": "blue", "C": "007", "D": "left of the cup"}
REPLIES = (
    "B",
    "A",
    "(B)",
    "The answer is B.",
    "blue",
    "The color is blue",
    "= B",
    "C",
    "D. left of the cup",
    "007",
    "A and B",
    "E",
)


def main() -> None:
    folder = Path(sys.argv[1])
    data, run = folder / "data", folder / "run"
    for path in (data, run / "trajectories", run / "scores"):
        path.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(image, "PNG")
    cell = base64.b64encode(image.getvalue()).decode()
    with open(data / "VStarBench.tsv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "image", "question", *OPTIONS, "answer", "category"])
        for index in range(len(REPLIES)):
            writer.writerow(
                [index, cell, f"Which color has object {index}?", *OPTIONS.values(), "B", "direct_attributes"]
            )
    config = Config.from_dict({"eval": {"data": str(data), "benchmarks": ["vstar"]}, "recipe": "evaluate"})
    benchmark = BENCHMARKS.get("vstar")()
    answers, scores, verdicts = [], [], {}
    for question, reply in zip(benchmark.load(config, read_rows), REPLIES, strict=True):
        score = benchmark.score(question, BenchmarkAnswer(f"<answer>{reply}</answer>", reply, RewardConfig()))
        # Without a judge the rule leaves replies open that the kit, with exact matching, counts as wrong.
        value = score.value
        info = AnswerInfo("vstar", question.id, 0, 1, "", "package:cold_start", ("code",), final=reply)
        turn = {
            "kind": "answer",
            "text": f"<answer>{reply}</answer>",
            "observation": None,
            "pictures": [],
            "status": "",
            "wall_ms": 0.0,
        }
        asked = {"id": question.id, "skill": question.skill, "data_source": question.data_source, "text": question.text,
                 "answer": question.answer, "verifier": question.verifier, "pictures": []}  # fmt: skip
        answers.append({"format": 1, "id": question.id, "question": asked, "token_ids": [], "segments": [], "logprobs": [],
                        "versions": [], "views": [], "turns": [turn], "finish": "answer", "dropped": False, "reward": None,
                        "reward_parts": {}, "tool_calls": 0, "stage": "evaluate", "step": None, "time": 1.0,
                        "answer": info.to_dict()})  # fmt: skip
        scores.append(ScoreRecord("vstar", question.id, 0, 1, "official", score).to_dict())
        verdicts[question.id] = float(value or 0)
    for name, lines in (("trajectories", answers), ("scores", scores)):
        (run / name / "evaluate.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    (run / "results.json").write_text(json.dumps({"benchmarks": {"vstar": {"rows": {}}}, "stages": []}))
    (folder / "verdicts.json").write_text(json.dumps(verdicts))


if __name__ == "__main__":
    main()
