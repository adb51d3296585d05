"""Reads cells that hold a Python list, such as `['A. red', 'B. blue']`, without executing them."""

from __future__ import annotations

import ast


def read_list(text: str) -> list[str] | None:
    """Returns the items of a list literal as text; None for anything else."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return [str(item) for item in value] if isinstance(value, list) else None


def lettered(items: list[str]) -> dict[str, str]:
    """Returns options by letter: the first is A."""
    return {chr(ord("A") + number): item for number, item in enumerate(items)}
