"""Finds the files of benchmarks in the folder `eval.data`, under the names in which they are published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.config import Config, ConfigError

_VARIABLE = "LMUData"  # VLMEvalKit's variable for the folder of its TSV files
_SHOWN = 12  # names of a folder's content in a message


def data_folder(config: Config) -> Path:
    """Returns `eval.data`, or else `$LMUData`, or else `~/LMUData`; it need not exist."""
    return Path(config.eval.data or os.environ.get(_VARIABLE) or "~/LMUData").expanduser()


def find_file(config: Config, names: Sequence[str]) -> Path:
    """Returns the first file of the folder that matches one of `names`, which may be patterns such as `*/test*.parquet`.

    `NAME_local.tsv`, as VLMEvalKit writes from a large `NAME.tsv`, stands for the latter where only it exists.

    Raises:
        ConfigError: there is none; the message names the folder, the names and the folder's content.
    """
    return find_files(config, names)[0]


def find_files(config: Config, names: Sequence[str]) -> list[Path]:
    """Returns the files that match the first of `names` that any file matches, by name: the parts of one data set.

    Raises:
        ConfigError: as `find_file`.
    """
    folder = data_folder(config)
    if found := present_files(config, names):
        return found
    wanted = " or ".join(names)
    if not folder.is_dir():
        raise ConfigError(f"{_source(config)}: there is no folder {folder}; it must hold {wanted}")
    content = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(content) - _SHOWN:,} more" if len(content) > _SHOWN else ""
    held = f"it holds {', '.join(content[:_SHOWN])}{more}" if content else "it is empty"
    raise ConfigError(f"{_source(config)}: {folder} has no {wanted}; {held}")


def present_files(config: Config, names: Sequence[str]) -> list[Path]:
    """Returns what `find_files` does, or an empty list where there is none."""
    folder = data_folder(config)
    for name in names:
        for pattern in _with_local(name):
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return found
    return []


def _with_local(name: str) -> tuple[str, ...]:
    return (name, f"{name.removesuffix('.tsv')}_local.tsv") if name.endswith(".tsv") else (name,)


def _source(config: Config) -> str:
    if config.eval.data:
        return f"eval.data = {config.eval.data!r}"
    return f"${_VARIABLE}" if os.environ.get(_VARIABLE) else f"eval.data and ${_VARIABLE} are empty"
