"""The text of ``--help``: usage, the presets of a recipe file, and every field with its value and comment."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from dv2_jax.config.overrides import field_comments, field_types, type_name

_WIDTH = 116


def usage(verb: str, default_config: str = "") -> str:
    """The usage lines of ``python -m dv2_jax.<verb>``."""
    config = f"[--config={default_config}[:PRESET]]" if default_config else "--config=FILE[:PRESET]"
    return (
        f"usage: python -m dv2_jax.{verb} {config} [--config.SECTION.FIELD=VALUE ...]\n"
        f"       python -m dv2_jax.{verb} --config=FILE[:PRESET] --help    presets of the file, all fields with "
        f"its values"
    )


def preset_lines(presets: Mapping[str, Callable[[], Any]]) -> str:
    """One line per preset: its name and the first line of its function's docstring."""
    width = max(map(len, presets), default=0)
    lines = []
    for position, (name, make) in enumerate(presets.items()):
        summary = (inspect.getdoc(make) or "").split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}{' (the default)' if position == 0 else ''}".rstrip())
    return "\n".join(lines)


def show(value: Any) -> str:
    """A field's value as it would be typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "''"


def field_lines(config: Any, prefix: str = "--config.") -> str:
    """Every field as ``--config.section.name=VALUE  type``, its comment below; sections under their docstring."""
    cls = type(config)
    comments = field_comments(cls)
    lines, sections = [], []
    for name, kind in field_types(cls).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            title = _own_doc(type(value))
            sections.append(f"\n{name}{': ' + title if title else ''}\n" + field_lines(value, f"{prefix}{name}."))
            continue
        lines.append(f"  {prefix}{name}={show(value)}  ({type_name(kind)})")
        if comments.get(name):
            lines.extend(textwrap.wrap(comments[name], _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines + sections)


def _own_doc(cls: type) -> str:
    doc = inspect.getdoc(cls) or ""
    generated = doc.startswith(f"{cls.__name__}(")  # what @dataclass writes when there is no docstring
    return "" if generated else doc.split("\n")[0]
