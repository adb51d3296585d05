"""Reads a recipe file and applies command-line overrides.

A recipe file (``configs/rl.py``) exposes ``PRESETS``, a table from name to a function that returns a ``Config``
(the first is the default), and ``get_config(preset: str) -> Config``. ``load`` reads it, applies dotted
command-line overrides and rejects what it does not know.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from dv2_jax.config import help_text
from dv2_jax.config.overrides import ConfigError, check_types, flatten, replace_value, suggest
from dv2_jax.config.schema import Config

ResultT = TypeVar("ResultT")


def load(argv: Sequence[str] | None = None, *, verb: str = "train", default_config: str = "") -> Config:
    """The configuration that a command line asks for.

    ``argv`` (default ``sys.argv[1:]``) holds ``--config=FILE[:PRESET]``, which may be left out where the verb has a
    ``default_config``, and ``--config.SECTION.FIELD=VALUE`` (or ``... VALUE`` as its own word), applied in order.
    ``--help`` prints and raises SystemExit(0). Raises ConfigError naming the key, the value and the nearest right one.
    """
    source, overrides, wants_help = _split_arguments(sys.argv[1:] if argv is None else argv, verb)
    source = source or default_config
    if not source:
        if wants_help:
            files = sorted(str(path) for path in (_repository() / "configs").glob("*.py"))
            print(help_text.usage(verb), "\n\nconfiguration files that come with the project:")
            print("\n".join(f"  {path}" for path in files), "\n\nfields and their defaults:")
            print(help_text.field_lines(Config()))
            raise SystemExit(0)
        raise ConfigError(f"no configuration given\n{help_text.usage(verb)}")
    path, preset = _split_preset(source)
    module = _import_file(path)
    config = _preset(module, path, preset)
    for key, text in overrides:
        config = replace_value(config, key, text)
    check_types(config)
    if wants_help:
        print(help_text.usage(verb, default_config))
        print(f"\n{(module.__doc__ or '').strip()}\n\npresets of {path}:")
        print(help_text.preset_lines(module.PRESETS))
        print(f"\nfields, with their values in preset {preset or next(iter(module.PRESETS))!r}:")
        print(help_text.field_lines(config))
        raise SystemExit(0)
    return config


def run_verb(run: Callable[[Config], ResultT], argv: Sequence[str] | None = None, **kwargs: str) -> ResultT:
    """``run(load(argv))``, where a ConfigError ends the process with one message instead of a trace."""
    try:
        return run(load(argv, **kwargs))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _split_arguments(argv: Sequence[str], verb: str) -> tuple[str, list[tuple[str, str]], bool]:
    """(FILE[:PRESET], [(dotted key, text)], whether help is asked for)."""
    source, overrides, wants_help = "", [], False
    words = list(argv)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        if flag in ("--help", "-h"):
            wants_help = True
            continue
        if flag != "--config" and not flag.startswith("--config."):
            known = {"--config", "--help"} | {f"--config.{key}" for key, _, _ in flatten(Config())}
            nested = f"; did you mean '--config.{flag[2:]}'?" if f"--config.{flag[2:]}" in known else ""
            raise ConfigError(f"unknown argument {flag!r}{nested or suggest(flag, known)}\n{help_text.usage(verb)}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{flag} needs a value: {flag}=VALUE")
            text = words.pop(0)
        if flag == "--config":
            source = text
        else:
            overrides.append((flag.removeprefix("--config."), text))
    return source, overrides, wants_help


def _split_preset(source: str) -> tuple[Path, str]:
    """``configs/rl.py:7b`` → (path, "7b"). A relative path that is not here is looked for beside the package."""
    name, colon, preset = source.rpartition(":")
    if not colon or preset.endswith(".py"):
        name, preset = source, ""
    path = Path(name)
    if not path.is_file() and not path.is_absolute() and (_repository() / path).is_file():
        path = _repository() / path
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else _repository() / "configs"
        near = [str(found) for found in sorted(folder.glob("*.py"))]
        raise ConfigError(f"no configuration file {name!r}{suggest(name, near)} (there: {', '.join(near) or 'none'})")
    return path, preset


def _repository() -> Path:
    return Path(__file__).resolve().parents[2]


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dv2_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not getattr(module, "PRESETS", None) or not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path} needs PRESETS (name → function) and get_config(preset)")
    return module


def _preset(module: ModuleType, path: Path, preset: str) -> Config:
    name = preset or next(iter(module.PRESETS))
    if name not in module.PRESETS:
        raise ConfigError(
            f"{path} has no preset {name!r}{suggest(name, module.PRESETS)} (presets: {', '.join(module.PRESETS)})"
        )
    config = module.get_config(name)
    if not isinstance(config, Config):
        raise ConfigError(f"get_config({name!r}) of {path} returned {type(config).__name__}, not a Config")
    return config
