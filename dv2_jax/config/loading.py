"""Reads a recipe file and applies command-line overrides.

A recipe file (`configs/rl.py`) exposes `PRESETS`, a table from name to a function that returns a `Config`
(the first is the default), and `get_config(preset: str) -> Config`. `load` imports it, applies dotted command-line
overrides and rejects unknown keys.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from dv2_jax.config import help_text
from dv2_jax.config.errors import ConfigError, one_line_errors
from dv2_jax.config.migrations import reject_old_key
from dv2_jax.config.overrides import check_types, flatten, replace_value, suggest
from dv2_jax.config.schema import Config

ResultT = TypeVar("ResultT")


def load(argv: Sequence[str] | None = None, *, command: str = "train", default_config: str = "") -> Config:
    """Returns the configuration that a command line asks for.

    `argv` (default `sys.argv[1:]`) holds `--config=RECIPE[:PRESET]`, optional if the command has a `default_config`,
    and `--config.SECTION.FIELD=VALUE` (or `... VALUE` as a separate word), applied in order. RECIPE is the path of a
    recipe file or the name of one that comes with the package, such as `rl`.

    Raises:
        ConfigError: a file, preset, key or value is invalid; the message names it and the nearest valid one.
        SystemExit: `--help` was given; its text has been printed.
    """
    source, overrides, wants_help = _split_arguments(sys.argv[1:] if argv is None else argv, command)
    source = source or default_config
    if not source:
        if not wants_help:
            raise ConfigError(f"no configuration given\n{help_text.usage(command)}")
        print(help_text.usage(command), "\n\nrecipe files that come with the package:")
        print("\n".join(f"  {path}" for path in _packaged_recipes()), "\n\nfields and their defaults:")
        print(help_text.field_lines(Config()))
        raise SystemExit(0)
    path, preset = _split_preset(source)
    module = _import_file(path)
    config = _preset(module, path, preset)
    for key, text in overrides:
        reject_old_key(key)
        config = replace_value(config, key, text)
    check_types(config)
    if wants_help:
        print(help_text.usage(command, default_config))
        print(f"\n{(module.__doc__ or '').strip()}\n\npresets of {path}:")
        print(help_text.preset_lines(module.PRESETS))
        print(f"\nfields, with their values in preset {preset or next(iter(module.PRESETS))!r}:")
        print(help_text.field_lines(config))
        raise SystemExit(0)
    return config


def run_command(run: Callable[[Config], ResultT], argv: Sequence[str] | None = None, **kwargs: str) -> ResultT:
    """Calls `run(load(argv))`; prints one message instead of a traceback for foreseeable errors (`one_line_errors`)."""
    with one_line_errors():
        return run(load(argv, **kwargs))


def _split_arguments(argv: Sequence[str], command: str) -> tuple[str, list[tuple[str, str]], bool]:
    """Returns (RECIPE[:PRESET], [(dotted key, text)], True if help was requested)."""
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
            raise ConfigError(f"unknown argument {flag!r}{nested or suggest(flag, known)}\n{help_text.usage(command)}")
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
    """Splits `configs/rl.py:7b` or `rl:7b` into (path of the recipe file, "7b").

    A path that does not exist is looked up by file name among the packaged recipes if it has the form
    `configs/NAME.py`, so that the commands of the documentation work from any folder.
    """
    name, colon, preset = source.rpartition(":")
    if not colon or preset.endswith(".py"):
        name, preset = source, ""
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path, preset
    packaged = {found.stem: found for found in _packaged_recipes()}
    if name in packaged:
        return packaged[name], preset
    if path == Path("configs", path.name) and path.suffix == ".py" and path.stem in packaged:
        return packaged[path.stem], preset
    siblings = sorted(path.parent.glob("*.py")) if path.suffix == ".py" else []
    known = [*map(str, siblings), *packaged, *(f"configs/{stem}.py" for stem in packaged)]
    raise ConfigError(f"no configuration file {name!r}{suggest(name, known)} (there: {', '.join(known)})")


def _packaged_recipes() -> list[Path]:
    """Returns the recipe files that come with the package.

    A checkout has them in its top-level `configs/`; a wheel contains the same folder as `dv2_jax/configs`, which in a
    checkout is a symbolic link.
    """
    package = Path(__file__).resolve().parents[1]
    repository = package.parent
    is_checkout = (repository / "pyproject.toml").is_file()
    folder = repository / "configs" if is_checkout else package / "configs"
    return sorted(folder.glob("*.py"))


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
