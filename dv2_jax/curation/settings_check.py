"""Refuses to mix labels of different settings in one run directory. Thresholds and shares may change freely."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.config.overrides import flatten
from dv2_jax.files import atomic_write

SETTINGS_FILE = "settings.json"
# Fields on which stored labels depend.
LABEL_FIELDS = (
    "run.seed", "model.init", "agent.*", "image.*", "task.source", "task.seed", "task.skills", "task.train_size",
    "reward.judge_model", "reward.verdicts", "curate.sources", "curate.size", "curate.temperature", "curate.endpoint_model",
    "curate.max_tokens", "curate.teacher_temperature", "curate.benchmarks",
    "curate.reviewer",
)  # fmt: skip


def check_settings(config: Config, folder: Path) -> None:
    """Compares the settings with those of the labels in `folder`, or stores them with the first start.

    Raises:
        ConfigError: one differs; the message has both values.
    """
    given = {key: _json(value) for key, _, value in flatten(config) if _matters(key)}
    path = folder / SETTINGS_FILE
    if not path.exists():
        if (folder / "config.json").exists():
            raise ConfigError(f"{folder} belongs to another recipe: choose another folder with --config.run.name=NAME")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(given, indent=2, sort_keys=True) + "\n")
        return
    stored = json.loads(path.read_text())
    changed = [
        f"{key} = {stored[key]!r} there, {given[key]!r} here"
        for key in sorted(stored.keys() & given.keys())
        if stored[key] != given[key]
    ]
    if changed:
        raise ConfigError(
            f"{folder} has labels of other settings: {'; '.join(changed)};"
            " choose another folder with --config.run.name=NAME, or the settings there"
        )


def _matters(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in LABEL_FIELDS)


def _json(value: object) -> object:
    return json.loads(json.dumps(value))
