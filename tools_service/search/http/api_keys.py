"""Reads the API keys of search accounts from files or environment variables, and removes the variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import SecretStr


def take_api_key(variable: str, files: Mapping[str, str]) -> SecretStr | None:
    """Returns the key for `variable`: from its file in `files`, or from the environment variable; None without either.

    The variable is removed from the environment, so that child processes do not inherit it.

    Raises:
        ValueError: the file cannot be read, or its content is not a key.
    """
    if variable in files:
        where = files[variable]
        try:
            with open(where, encoding="utf-8") as file:
                key = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the key file {where} cannot be read: {error}") from None
        os.environ.pop(variable, None)
    else:
        where, key = variable, os.environ.pop(variable, "").strip()
        if not key:
            return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where} holds no key: one word of ASCII characters is needed")
    return SecretStr(key)
