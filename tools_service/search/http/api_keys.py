"""Keys of search accounts: from a file or from the environment of the service, and from there to nobody else."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import SecretStr


def take(variable: str, files: Mapping[str, str]) -> SecretStr | None:
    """The key that belongs to an environment variable: from ``files``, by that name, or from the variable itself.

    The variable is then removed, so that no process started later inherits it. None without either.

    Raises:
        ValueError: the file cannot be read, or what is there is no key.
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
