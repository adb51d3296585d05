"""Typed overrides of nested frozen dataclasses from text, by dotted key such as `rl.group_size=8`.

Field names, types and help texts are read from the dataclasses, so this module needs no change when a field is added.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from dv2_jax.config.errors import ConfigError

ConfigT = TypeVar("ConfigT")

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the known word closest to `word`, or an empty string if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def type_name(kind: Any) -> str:
    """Formats a type as in the dataclass: `tuple[str, ...]`, `'dapo' | 'released'`."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(choice) for choice in typing.get_args(kind))
    if kind is type(None):
        return "none"
    return str(kind) if origin else kind.__name__


def parse(text: str, kind: Any) -> Any:
    """Parses command-line text as a value of the annotated type `kind`.

    Raises:
        ValueError: the text is not of that type; the message is only the reason, `replace_value` adds the key.
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
        number = float(text)  # counts are often written as 1e6
        if not number.is_integer():
            raise ValueError("not an integer") from None
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
    """Checks a Python value from a recipe file against the annotated type `kind`; an int is a valid float."""
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
    """Returns field name → resolved annotation, in the order of the class body."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def check_types(config: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first field whose value does not match its annotation."""
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if not accepts(value, kind):
            raise ConfigError(f"{prefix}{name} = {value!r} is not of type {type_name(kind)}")
        if dataclasses.is_dataclass(value):
            check_types(value, f"{prefix}{name}.")


def replace_value(config: ConfigT, key: str, text: str) -> ConfigT:
    """Returns a copy of `config` with the field at the dotted `key` set to the parsed `text`.

    Raises:
        ConfigError: the key is unknown or names a section, or the text is not of the field's type.
    """
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
    """Suggests the dotted keys that end in `name`, for a key given without its section."""
    keys = [key for key, _, _ in flatten(config) if key.split(".")[-1] == name]
    return f"; did you mean {' or '.join(map(repr, keys))}?" if keys else ""


def from_mapping(cls: type[ConfigT], data: Mapping[str, Any], prefix: str = "") -> ConfigT:
    """Builds a dataclass from nested mappings (`dataclasses.asdict` or JSON); absent fields keep their defaults.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
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
    """Yields (dotted key, annotation, value) of every leaf field, in the order of the class bodies."""
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, kind, value


def field_help(cls: type) -> dict[str, str]:
    """Returns field name → help text, empty where a field has none."""
    return {f.name: f.metadata.get("help", "") for f in dataclasses.fields(cls)}
