"""Measures what curation is worth: cold start and RL on curated and on uncurated rows, in equal numbers.

    python -m benchmarks.curation_value [--questions 512] [--rows 128] [--seeds 3] [--folder FOLDER] [--json FILE]

The pipeline labels embedded questions once with the policy that is then trained: the shipped base for the cold start, the
shipped cold start for RL. Its thresholds choose the rows of four sets:

- `uncurated`: every question;
- `difficulty`: questions that the policy seldom solves without tools;
- `benefit`: for RL, questions that it solves with tools at least once; for the cold start, those that it does not solve;
- `curated`: both.

For every seed, as many rows are drawn from each set, a policy is trained on them with the same number of steps, and it
answers the same held-out questions. A stopped measurement continues if `--folder` is given.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.curation import add_output_options, curate_command, run, run_in_folder, train_command

FILTERS = {
    "uncurated": (),
    "difficulty": ("difficulty",),
    "benefit": ("benefit",),
    "curated": ("difficulty", "benefit"),
}
SKILLS = ("perception", "reasoning", "search", "integration", "plain")


@dataclass(frozen=True)
class Part:
    """A kind of training: the policy that is labeled and trained, and the recipe's settings."""

    name: str
    policy: str
    file: str
    source: str  # setting that names the training file
    overrides: tuple[str, ...]

    def command(self, folder: Path, name: str, data: Path, seed: int) -> list[str]:
        """Returns the command that trains on `data`."""
        return train_command(
            self.name, folder, f"run.name={name}", f"run.seed={seed}", f"model.init={self.policy}",
            f"{self.source}={data}", *self.overrides,
        )  # fmt: skip


def parts(rl_steps: int, sft_steps: int) -> tuple[Part, ...]:
    """Returns both kinds of training."""
    return (
        Part(
            "sft", "package:base", "sft.json", "sft.data",
            (f"sft.steps={sft_steps}", f"sft.checkpoint_every={sft_steps}"),
        ),
        Part(
            "rl", "package:cold_start", "rl.parquet", "task.source",
            (f"rl.steps={rl_steps}", f"rl.checkpoint_every={rl_steps}", "task.eval_size=1", "eval.stages=final",
             "eval.compare="),
        ),
    )  # fmt: skip


def write_sets(part: Part, folder: Path, questions: int) -> Iterator[tuple[str, Path]]:
    """Labels the questions and yields the folder of every set; labels are sampled once."""
    for name, filters in FILTERS.items():
        target = folder / f"{part.name}-{name}"
        if not target.exists():
            writers = ["synthesize", "verify"] if part.name == "sft" else []
            stages = ["read", "deduplicate", *filters, *writers, "mix"]
            overrides = [f"curate.size={questions}", f"curate.stages={','.join(stages)}", f"model.init={part.policy}"]
            if part.name == "rl":
                overrides.append("curate.sft_mixture=none=1")  # unsolved questions would need a teacher
            run(curate_command(folder, f"run.name=labels-{part.name}", *overrides))
            (folder / f"labels-{part.name}" / "output").rename(target)
        yield name, target


def draw_rows(source: Path, target: Path, count: int, seed: int) -> int:
    """Writes `count` random rows of a set next to its images; returns the number of rows in the set.

    Raises:
        RuntimeError: the set has fewer rows.
    """
    if source.suffix == ".parquet":
        table = pq.read_table(source)
        total = table.num_rows
    else:
        rows = json.loads(source.read_text())
        total = len(rows)
    if total < count:
        raise RuntimeError(f"{source} has {total} rows, {count} are wanted: label more questions")
    chosen = sorted(random.Random(seed).sample(range(total), count))
    if source.suffix == ".parquet":
        pq.write_table(table.take(chosen), target)
    else:
        target.write_text(json.dumps([rows[index] for index in chosen]))
    return total


def evaluate(folder: Path, name: str, checkpoint: Path, questions: int) -> dict[str, float]:
    """Returns the accuracies of a trained policy in percent, by skill and overall."""
    run(
        train_command(
            "evaluate", folder, f"run.name={name}", f"model.init=checkpoint:{checkpoint}", f"task.eval_size={questions}",
            module="dv2_jax.evaluate",
        )
    )  # fmt: skip
    results = json.loads((folder / name / "results.json").read_text())["evaluate"]
    return {skill: round(100 * results[skill]["accuracy"], 1) for skill in ("overall", *SKILLS)}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains and evaluates every set with every seed."""
    result: dict[str, Any] = {"questions": arguments.questions, "rows": arguments.rows}
    for part in parts(arguments.rl_steps, arguments.sft_steps):
        if part.name not in arguments.recipes.split(","):
            continue
        sets = dict(write_sets(part, folder, arguments.questions))
        found: dict[str, Any] = {name: {"rows of the set": 0, "runs": []} for name in sets}
        for seed in range(arguments.seeds):
            for name, source in sets.items():
                run_name = f"{part.name}-{name}-{seed}"
                data = source / f"{seed}-{part.file}"
                found[name]["rows of the set"] = draw_rows(source / part.file, data, arguments.rows, seed)
                run(part.command(folder / "runs", run_name, data, seed))
                scores = evaluate(
                    folder / "runs", f"{run_name}-scores", folder / "runs" / run_name, arguments.eval_questions
                )
                found[name]["runs"].append(scores)
                print(f"{run_name}: {scores}", flush=True)
        for entry in found.values():
            values = [scores["overall"] for scores in entry["runs"]]
            entry["overall"] = {
                "mean": round(statistics.mean(values), 1),
                "lowest": min(values),
                "highest": max(values),
            }
        result[part.name] = found
    return result


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.curation_value", description=__doc__.partition("\n")[0])
    for name, default, text in (
        ("questions", 512, "embedded questions to label"),
        ("rows", 128, "rows that are drawn from every set"),
        ("seeds", 3, "draws and trainings of every set"),
        ("sft-steps", 80, "optimizer steps of the cold start"),
        ("rl-steps", 16, "steps of RL"),
        ("eval-questions", 500, "held-out questions"),
    ):
        result.add_argument(f"--{name}", type=int, default=default, help=text)
    result.add_argument("--recipes", default="sft,rl", help="recipes to measure")
    add_output_options(result)
    return result


def main() -> None:
    """Runs the measurement."""
    run_in_folder(measure, parser().parse_args())


if __name__ == "__main__":
    main()
