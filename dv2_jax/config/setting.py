"""A field of the configuration: a default value and the help text that `--help` prints."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help_text: str) -> Any:
    """Returns a dataclass field with a default value and the help text that `--help` prints."""
    return field(default=default, metadata={"help": help_text})
