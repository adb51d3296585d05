"""Renamed and removed configuration fields, so that the `config.json` of older runs still loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dv2_jax.config.errors import ConfigError

# Dotted key in a stored config.json → dotted key today.
RENAMED_FIELDS = {
    "engine.picture_tokens": "engine.image_cache_tokens",
    "rl.loss_aggregation": "rl.aggregation",
}
# Dotted key in a stored config.json → reason that the command line gives.
REMOVED_FIELDS = {
    "eval.batch": "it had no effect; engine.slots bounds the questions in flight",
}
# Dotted key in a stored config.json → (dotted key today, value then → value today).
REPLACED_FIELDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "rl.normalize_std": ("rl.advantage", {True: "grpo", False: "dr_grpo"}),
    "rl.normalise_std": ("rl.advantage", {True: "grpo", False: "dr_grpo"}),
}
# Dotted key → value in a stored config.json → value today.
RENAMED_VALUES = {"rl.algorithm": {"released": "deepeyesv2"}}
STAGES_BEFORE_0_2 = frozenset({"base", "cold_start", "rl"})


def migrate(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a stored configuration in which old keys have their present names or are left out.

    Raises:
        ConfigError: both the old and the present name of a field are given.
    """
    migrated = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    for old, new in RENAMED_FIELDS.items():
        _move(migrated, old, new)
    for old, (new, values) in REPLACED_FIELDS.items():
        _move(migrated, old, new, values)
    if "loss_aggregation" in data.get("rl", {}):
        migrated["rl"].setdefault("loss", "ppo_clip")  # the only loss while that field existed
    for key, values in RENAMED_VALUES.items():
        section, name = key.split(".")
        if migrated.get(section, {}).get(name) in values:
            migrated[section][name] = values[migrated[section][name]]
    for old in REMOVED_FIELDS:
        section, name = old.split(".")
        migrated.get(section, {}).pop(name, None)
    _migrate_stages(migrated.get("eval", {}))
    return migrated


def _move(migrated: dict[str, Any], old: str, new: str, values: Mapping[Any, Any] | None = None) -> None:
    section, name = old.split(".")
    if name not in migrated.get(section, {}):
        return
    value = migrated[section].pop(name)
    new_section, new_name = new.split(".")
    target = migrated.setdefault(new_section, {})
    if new_name in target:
        raise ConfigError(f"{old!r} was renamed to {new!r}, and both are given: remove {old!r}")
    if values is not None and value not in values:
        raise ConfigError(f"{old} = {value!r}: expected {' or '.join(map(repr, values))}")
    target[new_name] = value if values is None else values[value]


def _migrate_stages(evaluation: Any) -> None:
    """Replaces the names of `eval.stages` before 0.2, the paper's base, cold_start and rl, in place."""
    stages = evaluation.get("stages") if isinstance(evaluation, dict) else None
    if not isinstance(stages, (list, tuple)) or not STAGES_BEFORE_0_2.intersection(stages):
        return
    evaluation["stages"] = [new for old, new in (("cold_start", "initial"), ("rl", "final")) if old in stages]
    if "base" in stages:
        evaluation.setdefault("compare", ["package:base"])


def reject_old_key(key: str) -> None:
    """Raises ConfigError if `key` (dotted, from the command line) names a field that was renamed or removed."""
    if key in RENAMED_FIELDS:
        raise ConfigError(f"{key!r} was renamed to {RENAMED_FIELDS[key]!r}: use --config.{RENAMED_FIELDS[key]}=VALUE")
    if key in REPLACED_FIELDS:
        new, values = REPLACED_FIELDS[key]
        raise ConfigError(f"{key!r} was replaced: use --config.{new}={' or '.join(map(str, values.values()))}")
    if key in REMOVED_FIELDS:
        raise ConfigError(f"{key!r} no longer exists: {REMOVED_FIELDS[key]}")
