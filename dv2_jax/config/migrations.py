"""Renamed and removed configuration fields, so that the `config.json` of older runs still loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dv2_jax.config.errors import ConfigError

# Dotted key in a stored config.json → dotted key today.
RENAMED_FIELDS = {
    "engine.picture_tokens": "engine.image_cache_tokens",
    "rl.normalise_std": "rl.normalize_std",
}
# Dotted key in a stored config.json → reason that the command line gives.
REMOVED_FIELDS = {
    "eval.batch": "it had no effect; engine.slots bounds the questions in flight",
}


def migrate(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a stored configuration in which old keys have their present names or are left out.

    Raises:
        ConfigError: both the old and the present name of a field are given.
    """
    migrated = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    for old, new in RENAMED_FIELDS.items():
        section, name = old.split(".")
        if name not in migrated.get(section, {}):
            continue
        value = migrated[section].pop(name)
        new_section, new_name = new.split(".")
        target = migrated.setdefault(new_section, {})
        if new_name in target:
            raise ConfigError(f"{old!r} was renamed to {new!r}, and both are given: remove {old!r}")
        target[new_name] = value
    for old in REMOVED_FIELDS:
        section, name = old.split(".")
        migrated.get(section, {}).pop(name, None)
    return migrated


def reject_old_key(key: str) -> None:
    """Raises ConfigError if `key` (dotted, from the command line) names a field that was renamed or removed."""
    if key in RENAMED_FIELDS:
        raise ConfigError(f"{key!r} was renamed to {RENAMED_FIELDS[key]!r}: use --config.{RENAMED_FIELDS[key]}=VALUE")
    if key in REMOVED_FIELDS:
        raise ConfigError(f"{key!r} no longer exists: {REMOVED_FIELDS[key]}")
