"""Registries of functions and classes that a configuration names: adding one is a decorator in one file.

A configuration names a registered entry (`ppo_clip`), or any by its import path (`my_package.my_module:my_loss`), which
needs no registration.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dv2_jax.config.overrides import ConfigError, suggest

EntryT = TypeVar("EntryT", bound=Callable)


class Registry(Generic[EntryT]):
    """Functions by name, or, with `base`, concrete subclasses of that class.

    `kind` and `key` are the kind of entry and its configuration field, as error messages name them. The modules of
    `package`, which register the entries that come with dv2_jax, are imported when a name is first looked up.
    """

    def __init__(self, kind: str, key: str, package: str = "", *, base: type | None = None):
        self.kind, self.key, self.package, self.base = kind, key, package, base
        self.entries: dict[str, EntryT] = {}

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Returns a decorator that registers an entry as `name`.

        Raises:
            ValueError: another entry has that name.
        """

        def add(entry: EntryT) -> EntryT:
            present = self.entries.get(name)
            if present is not None and _path(present) != _path(entry):
                raise ValueError(f"{self.kind} {name!r} is registered already, by {_path(present)}")
            self.entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """Returns the registered names, in the order of registration."""
        self._import_package()
        return list(self.entries)

    def get(self, name: str | None) -> EntryT:
        """Returns the entry of that name or import path.

        Raises:
            ConfigError: there is none, or it is not what this registry holds.
        """
        names = self.names()
        if name in self.entries:
            return self.entries[name]
        module, colon, attribute = name.partition(":")
        if not colon:
            elsewhere = f"a {self.kind} elsewhere is package.module:ClassName"
            if self.base is None:
                elsewhere = "a function elsewhere is package.module:function"
            raise ConfigError(f"{self.key}: {name!r} is none of {', '.join(names)}{suggest(name, names)}; {elsewhere}")
        try:
            entry = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{self.key}: cannot import {name!r}: {error}") from None
        if problem := self._problem(entry):
            raise ConfigError(f"{self.key}: {name!r} {problem}")
        return entry

    def _problem(self, entry: Any) -> str | None:
        if self.base is None:
            return None if callable(entry) else f"is a {type(entry).__name__}, not a function"
        if not (inspect.isclass(entry) and issubclass(entry, self.base)):
            return f"is no subclass of {_path(self.base)}"
        missing = ", ".join(sorted(getattr(entry, "__abstractmethods__", ())))
        return f"does not implement {missing}" if missing else None

    def _import_package(self) -> None:
        if self.package:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")


def _path(entry: Callable) -> str:
    return f"{entry.__module__}.{entry.__qualname__}"
