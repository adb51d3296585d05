"""Formats cells as the text of the values that pandas reads, because published prompts and scores are made from those.

`pandas.read_csv` reads a column of integers as int64, so that `007` becomes `7`; with an empty cell among them as float64, so
that `7` becomes `7.0`; and words such as `None` or `N/A` as missing, so that an option `None` is not shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# pandas' default words for a missing value.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)
_LONG = 25  # characters of an integer that fits no type
_BOOL = {"true": "True", "false": "False"}


@dataclass
class Column:
    """The type of a column, from the cells seen so far."""

    is_integer: bool = True
    is_float: bool = True
    is_bool: bool = True
    has_missing: bool = False
    minimum: int = 0
    maximum: int = 0

    def add(self, text: str) -> None:
        """Takes one cell into account."""
        if text in MISSING:
            self.has_missing = True
            return
        if self.is_integer:
            self._add_integer(text.strip())
        if self.is_float and not self.is_integer and not _FLOAT.fullmatch(text.strip()):
            self.is_float = False
        if self.is_bool and text.lower() not in _BOOL:
            self.is_bool = False

    def _add_integer(self, text: str) -> None:
        if _INTEGER.fullmatch(text):
            value = int(text) if len(text) < _LONG else 10**_LONG
            self.minimum, self.maximum = min(self.minimum, value), max(self.maximum, value)
            signed = -(2**63) <= self.minimum and self.maximum < 2**63
            if signed or (self.minimum >= 0 and self.maximum < 2**64):
                return
            self.is_float = False  # pandas keeps integers that fit no type as text
        self.is_integer = False

    def format(self, text: str) -> str:
        """Returns the text of pandas' value; a missing one is empty."""
        if text in MISSING:
            return ""
        if self.is_integer and (not self.has_missing or self.maximum >= 2**63):
            return str(int(text))
        if self.is_integer or self.is_float:
            return str(float(text))
        if self.is_bool:
            return _BOOL[text.lower()]
        return text
