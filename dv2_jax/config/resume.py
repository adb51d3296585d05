"""Comparison of the configuration stored in a run directory with that of a command that would resume the run.

A run directory belongs to one experiment: weights, metrics and provenance of two configurations must not mix. Only
fields that change neither data nor weights of a step may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dv2_jax.config.errors import ConfigError
from dv2_jax.config.migrations import migrate
from dv2_jax.config.overrides import field_types, flatten
from dv2_jax.config.schema import Config
from dv2_jax.files import DATA_ENDINGS, data_set_digest, file_digest

CONFIG_FILE = "config.json"
INPUTS_FILE = "inputs.json"  # digests of the data files of a run, and of the image files that their rows name
IMAGES = "images_sha256"  # entry of a data file in INPUTS_FILE: digest of the image files; None before they are read

# Fields that may differ. run.seed is not one of them: it orders the data. Engine sizes and the mesh change neither
# sampled tokens in float32 nor the examples of a step; the order of sums differs in the last bits.
MAY_CHANGE = (
    "run.name", "run.root", "run.resume", "run.tensorboard", "run.wandb_project",
    "tools.*", "eval.*", "serve.*", "engine.*", "mesh.*", "model.remat",
    "sft.checkpoint_every", "rl.checkpoint_every", "rl.keep_trajectories", "reward.judge_outage_s",
)  # fmt: skip
# Fields whose value is free as long as it is set, or empty, in both: the address of a judge.
MAY_MOVE = ("reward.judge_base_url",)
# Fields that may name a file, or a folder of data files: the digest of the content counts, not the path.
FILES = ("sft.data", "task.source", "task.eval_source", "agent.system_prompt")
# Sections that a recipe does not read.
UNUSED = {"sft": ("rl.*", "reward.*", "sampling.*"), "rl": ("sft.*",)}


@dataclass(frozen=True)
class Difference:
    """A field whose stored value differs from that of the command."""

    key: str
    stored: str
    given: str

    def __str__(self) -> str:
        return f"{self.key} = {self.stored} there, {self.given} here"


def file_digests(config: Config, known: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Returns the digest of every data file that the configuration names: field → path, size, mtime_ns, sha256.

    For a folder, `files`, `size` and `mtime_ns` are lists with one entry per data file. What has name, size and time
    of modification as in `known`, an earlier result, is not read again. Other entries of `known` are kept.
    """
    values = {key: value for key, _, value in flatten(config)}
    found = {}
    for key in FILES:
        path = Path(values[key]) if values[key] else None
        if path is None or not (files := _data_files(path)):
            continue
        sizes, times = zip(*((status.st_size, status.st_mtime_ns) for status in map(Path.stat, files)), strict=True)
        entry: dict[str, Any] = {"path": str(path.absolute()), "size": sizes[0], "mtime_ns": times[0]}
        if path.is_dir():
            entry |= {"files": [file.name for file in files], "size": list(sizes), "mtime_ns": list(times)}
        old = (known or {}).get(key, {})
        same = "sha256" in old and all(old.get(name) == value for name, value in entry.items())
        if not same:
            entry["sha256"] = data_set_digest(files) if path.is_dir() else file_digest(path)
        found[key] = {**old, **entry}
    return found


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in DATA_ENDINGS and file.is_file())
    return [path] if path.is_file() else []


def read_stored(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a run directory.

    Raises:
        ConfigError: the file is truncated or has another content; the message names it and the ways out.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        document = error
    if not isinstance(document, dict):
        reason = f": {document}" if isinstance(document, ValueError) else ""
        raise ConfigError(
            f"{path} is no JSON object{reason}; restore the file, or choose another run with --config.run.name=NAME"
        )
    return document


def differences(
    stored: Mapping[str, Any],
    given: Config,
    *,
    complete: Callable[[Config], Config] = lambda config: config,
    stored_files: Mapping[str, Any] | None = None,
    given_files: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Returns the fields in which a stored `config.json` differs from `given`, in the order of the schema.

    Fields that are missing in `stored`, because an older version wrote it, have their defaults; fields that no longer
    exist have no effect and are ignored. `complete` fills in derived values as the recipe did for `given`.

    Raises:
        ConfigError: a stored value has the wrong type.
    """
    before = complete(Config.from_dict(_without_unknown(Config, stored)))
    old = {key: value for key, _, value in flatten(before)}
    old_files, new_files = stored_files or {}, given_files or {}
    found = []
    for key, _, new in flatten(given):
        if key in old_files and key in new_files:
            if old_files[key]["sha256"] != new_files[key]["sha256"]:
                found.append(Difference(key, *(_with_digest(side[key]) for side in (old_files, new_files))))
        elif old[key] != new:
            found.append(Difference(key, repr(old[key]), repr(new)))
    return found


def is_allowed(difference: Difference, recipe: str) -> bool:
    """Tests if a run of `recipe` may be resumed in spite of the difference."""
    key = difference.key
    if key in MAY_MOVE:
        return (difference.stored == "''") == (difference.given == "''")
    return any(fnmatchcase(key, pattern) for pattern in (*MAY_CHANGE, f"{recipe}.steps", *UNUSED.get(recipe, ())))


def _with_digest(entry: Mapping[str, Any]) -> str:
    return f"{entry['path']} (sha256 {entry['sha256'][:12]})"


def _without_unknown(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration, with old names already replaced, without fields that no longer exist."""
    known = field_types(cls)
    sections = {name: value for name, value in migrate(data).items() if name in known}
    return {
        name: {key: item for key, item in value.items() if key in field_types(known[name])}
        if isinstance(value, Mapping)
        else value
        for name, value in sections.items()
    }
