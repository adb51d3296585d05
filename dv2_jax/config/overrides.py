"""Typed overrides of nested frozen dataclasses: ``rl.group_size=8`` by dotted key, from text.

Knows nothing of the fields themselves: names, types and comments are read from the dataclasses, so a field
that is added there can at once be set, checked, suggested and explained here.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT")

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


class ConfigError(ValueError):
    """A key, value or preset that cannot be used; the message names it and the fix."""


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def type_name(kind: Any) -> str:
    """A type the way it is written in the dataclass: ``tuple[str, ...]``, ``'dapo' | 'released'``."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(choice) for choice in typing.get_args(kind))
    if kind is type(None):
        return "none"
    return str(kind) if origin else kind.__name__


def parse(text: str, kind: Any) -> Any:
    """The value that ``text`` (from a command line) means for a field annotated with ``kind``.

    Raises ValueError with no more than the reason; ``replace_value`` adds the key.
    """
    origin = typing.get_origin(kind)
    if origin is Literal:
        for choice in typing.get_args(kind):
            if text == str(choice):
                return choice
        raise ValueError(suggest(text, map(str, typing.get_args(kind))).lstrip("; "))
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, typing.get_args(kind))
    if origin is tuple:
        return _parse_tuple(text, typing.get_args(kind))
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError("write true or false")
    if kind is int:
        return _parse_int(text)
    if kind is float:
        return float(text)
    if kind is str:
        return text
    raise ValueError(f"fields of type {type_name(kind)} cannot be set on the command line")


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 1e6 is a natural way to write a count
        if not number.is_integer():
            raise ValueError("not a whole number") from None
        return int(number)


def _parse_union(text: str, choices: tuple[Any, ...]) -> Any:
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    for choice in choices:
        if choice is not type(None):
            try:
                return parse(text, choice)
            except ValueError:
                continue
    raise ValueError("")


def _parse_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    body = text.strip()
    if body[:1] + body[-1:] in ("()", "[]"):
        body = body[1:-1]
    items = [item.strip().strip("'\"") for item in body.split(",")]
    items = [item for item in items if item]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(parse(item, kinds[0]) for item in items)
    if len(items) != len(kinds):
        raise ValueError(f"needs {len(kinds)} values separated by commas")
    return tuple(parse(item, kind) for item, kind in zip(items, kinds))


def accepts(value: Any, kind: Any) -> bool:
    """Whether a Python value (from a recipe file) is one that ``kind`` allows. A whole number is a float too."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(value, choice) for choice in typing.get_args(kind))
    if origin is tuple:
        kinds = typing.get_args(kind)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return isinstance(value, tuple) and all(accepts(item, kinds[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(accepts, value, kinds))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Field name → resolved annotation, in the order of the class body."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def check_types(config: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first field whose value its annotation does not allow."""
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if not accepts(value, kind):
            raise ConfigError(f"{prefix}{name} = {value!r} is not of type {type_name(kind)}")
        if dataclasses.is_dataclass(value):
            check_types(value, f"{prefix}{name}.")


def replace_value(config: ConfigT, key: str, text: str) -> ConfigT:
    """A copy of ``config`` with the field at the dotted ``key`` set to what ``text`` means."""
    return _replace(config, key.split("."), text, key)


def _replace(config: Any, path: list[str], text: str, key: str) -> Any:
    known = field_types(type(config))
    name, rest = path[0], path[1:]
    if name not in known:
        section = key.removesuffix(".".join(path)).rstrip(".")
        hint = suggest(name, known) or _suggest_elsewhere(config, name)
        raise ConfigError(
            f"unknown key {key!r}: {section or 'the configuration'} has no {name!r}{hint} (known: {', '.join(known)})"
        )
    value = getattr(config, name)
    if dataclasses.is_dataclass(value):
        if not rest:
            fields = ", ".join(field_types(type(value)))
            raise ConfigError(f"{key!r} is a section, not a field; set one of its fields: {fields}")
        return dataclasses.replace(config, **{name: _replace(value, rest, text, key)})
    if rest:
        raise ConfigError(f"unknown key {key!r}: {name!r} is a field of type {type_name(known[name])}, not a section")
    try:
        parsed = parse(text, known[name])
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        raise ConfigError(f"{key} = {text!r}: expected {type_name(known[name])}{reason}") from None
    return dataclasses.replace(config, **{name: parsed})


def _suggest_elsewhere(config: Any, name: str) -> str:
    """The dotted keys that end in ``name``, for somebody who left the section out."""
    keys = [key for key, _, _ in flatten(config) if key.split(".")[-1] == name]
    return f"; did you mean {' or '.join(map(repr, keys))}?" if keys else ""


def from_mapping(cls: type[ConfigT], data: Mapping[str, Any], prefix: str = "") -> ConfigT:
    """The dataclass that ``dataclasses.asdict`` and JSON (lists for tuples) came from; absent fields keep defaults."""
    known = field_types(cls)
    values = {}
    for name, value in data.items():
        if name not in known:
            raise ConfigError(f"unknown key {prefix + name!r}{suggest(name, known)}")
        if dataclasses.is_dataclass(known[name]):
            values[name] = from_mapping(known[name], value, f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    config = cls(**values)
    check_types(config, prefix)
    return config


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, annotation, value) of every leaf field, in the order of the class bodies."""
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, kind, value


@functools.cache
def field_comments(cls: type) -> dict[str, str]:
    """Field name → the comment behind it (and on its further lines) in the source of the class."""
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        spans = [comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
        following = node.end_lineno + 1
        while following in comments and lines[following - 1].lstrip().startswith("#"):
            spans.append(comments[following])
            following += 1
        found[node.target.id] = " ".join(spans)
    return found
