"""Text of `--help`: usage, the presets of a recipe file, and every field with its value and help text."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from dv2_jax.config.overrides import field_help, field_types, type_name

_WIDTH = 116


def usage(command: str, default_config: str = "") -> str:
    """Returns the usage lines of `python -m dv2_jax.<command>`."""
    config = f"[--config={default_config}[:PRESET]]" if default_config else "--config=FILE[:PRESET]"
    return (
        f"usage: python -m dv2_jax.{command} {config} [--config.SECTION.FIELD=VALUE ...]\n"
        f"       python -m dv2_jax.{command} --config=FILE[:PRESET] --help    presets of the file, all fields with "
        f"their values"
    )


def preset_lines(presets: Mapping[str, Callable[[], Any]]) -> str:
    """Returns one line per preset: its name and the first line of its function's docstring."""
    width = max(map(len, presets), default=0)
    lines = []
    for position, (name, make) in enumerate(presets.items()):
        summary = (inspect.getdoc(make) or "").split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}{' (the default)' if position == 0 else ''}".rstrip())
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Formats a field's value as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "''"


def field_lines(config: Any, prefix: str = "--config.") -> str:
    """Returns each field as `--config.section.name=VALUE  (type)` followed by its help text, grouped by section."""
    cls = type(config)
    help_texts = field_help(cls)
    lines, sections = [], []
    for name, kind in field_types(cls).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            title = _section_title(type(value))
            sections.append(f"\n{name}{': ' + title if title else ''}\n" + field_lines(value, f"{prefix}{name}."))
            continue
        lines.append(f"  {prefix}{name}={format_value(value)}  ({type_name(kind)})")
        lines.extend(textwrap.wrap(help_texts[name], _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines + sections)


def _section_title(cls: type) -> str:
    doc = inspect.getdoc(cls) or ""
    generated = doc.startswith(f"{cls.__name__}(")  # @dataclass writes the signature if a class has no docstring
    return "" if generated else doc.split("\n")[0]
