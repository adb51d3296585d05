"""Checks that a run directory can be continued: records of two configurations must not mix."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.config.resume import CONFIG_FILE, Difference, differences, read_stored
from dv2_jax.evaluation.answer_store import ANSWERS, SCORES

# Fields that may differ between two starts. Those of prompts, models and sampling may not: answers would mix. What
# decides about scores alone may differ, since scores are computed again.
MAY_CHANGE = (
    "recipe", "run.name", "run.root", "run.resume", "run.tensorboard", "run.wandb_project", "model.remat", "model.freeze",
    "mesh.*", "engine.*", "tools.*", "data.*", "reward.*", "optim.*", "sft.*", "rl.*", "eval.*", "sampling.*",
    "task.train_size", "task.eval_size", "task.skills",
)  # fmt: skip
FIXED = ("eval.temperature", "eval.endpoint_model", "eval.endpoint_max_tokens")
RESTART = "choose another folder with --config.run.name=NAME, or start over with --config.run.resume=False"


def check_run_folder(run_dir: Path, config: Config) -> None:
    """Checks the run directory of an evaluation, before anything is loaded.

    Raises:
        ConfigError: it holds a training run, answers under another configuration, or those of an earlier version.
    """
    if (run_dir / "checkpoints").exists():  # its config.json would no longer be that of the checkpoints
        raise ConfigError(f"{run_dir} is a training run: choose another folder with --config.run.name=NAME")
    if not config.run.resume or not (run_dir / CONFIG_FILE).is_file():
        return
    if not any(run_dir.glob(f"{ANSWERS}/*.jsonl")) and not any(run_dir.glob(f"{ANSWERS}/host-*/*.jsonl")):
        return
    if not _has_answers(run_dir):
        raise ConfigError(f"{run_dir} holds an evaluation of an earlier version, which cannot be continued: {RESTART}")
    changed = [found for found in differences(read_stored(run_dir / CONFIG_FILE), config) if not _may_change(found)]
    if changed:
        raise ConfigError(
            f"{run_dir} holds answers under another configuration ({'; '.join(map(str, changed))}): {RESTART}"
        )


def _may_change(difference: Difference) -> bool:
    key = difference.key
    if key == "eval.endpoint":  # the address of a model may change, but not from the own engine to an endpoint
        return (difference.stored == "''") == (difference.given == "''")
    return key not in FIXED and any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)


def _has_answers(run_dir: Path) -> bool:
    for path in sorted(run_dir.glob(f"{ANSWERS}/**/*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                try:
                    return "answer" in json.loads(line)
                except ValueError:  # the line of a killed run
                    continue
    return True


def remove_records(run_dir: Path) -> None:
    """Removes answers, replies, scores and results of an earlier evaluation; images and recorded searches stay."""
    for folder in (run_dir / ANSWERS, run_dir / SCORES):
        for path in folder.glob("*.jsonl"):
            path.unlink()
        for path in folder.glob("host-*"):
            shutil.rmtree(path)
    for pattern in ("results/*.json*", "results/*.csv", "replies/*.jsonl"):
        for path in run_dir.glob(pattern):
            path.unlink()
    (run_dir / "results.json").unlink(missing_ok=True)
