"""Registries of functions that a configuration names: adding one is a function with a decorator, in one file.

A configuration names a registered function (`ppo_clip`), or any function by its import path (`my_package.my_module:my_loss`),
which needs no registration.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from dv2_jax.config.overrides import ConfigError, suggest

FunctionT = TypeVar("FunctionT", bound=Callable)


class Registry(Generic[FunctionT]):
    """Functions by name.

    `kind` and `key` are the kind of function and its configuration field, as error messages name them. The modules of
    `package`, which register the functions that come with dv2_jax, are imported when a name is first looked up.
    """

    def __init__(self, kind: str, key: str, package: str = ""):
        self.kind, self.key, self.package = kind, key, package
        self.entries: dict[str, FunctionT] = {}

    def register(self, name: str) -> Callable[[FunctionT], FunctionT]:
        """Returns a decorator that registers a function as `name`.

        Raises:
            ValueError: another function has that name.
        """

        def add(function: FunctionT) -> FunctionT:
            present = self.entries.get(name)
            if present is not None and _path(present) != _path(function):
                raise ValueError(f"{self.kind} {name!r} is registered already, by {_path(present)}")
            self.entries[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """Returns the registered names, in the order of registration."""
        self._import_package()
        return list(self.entries)

    def get(self, name: str | None) -> FunctionT:
        """Returns the function of that name or import path.

        Raises:
            ConfigError: there is none.
        """
        names = self.names()
        if name in self.entries:
            return self.entries[name]
        module, colon, attribute = name.partition(":")
        if not colon:
            raise ConfigError(
                f"{self.key}: {name!r} is none of {', '.join(names)}{suggest(name, names)};"
                " a function elsewhere is package.module:function"
            )
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.key}: cannot import {name!r}: {error}") from None
        if not callable(function):
            raise ConfigError(f"{self.key}: {name!r} is a {type(function).__name__}, not a function")
        return function

    def _import_package(self) -> None:
        if self.package:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")


def _path(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"
