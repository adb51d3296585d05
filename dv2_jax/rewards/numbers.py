"""One number with its unit, out of what people write: separators, signs, fractions, powers, percent, words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_NUMBER = re.compile(
    r"""(?<![\w.])(?P<sign>[-+]?)\s?
    (?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?:[ _']\d{3})+|\d+|(?=\.\d))
    (?P<decimals>[.,]\d+)?
    (?:\s?(?:[x*×·]\s?10\s?\^?\s?\{?(?P<power>[-+]?\d+)\}?|[eE](?P<exponent>[-+]?\d+)))?
    (?:\s?/\s?(?P<divisor>\d+))?""",
    re.VERBOSE,
)
_UNIT = re.compile(r"^\s*(%|°\s?[CF]?|[^\W\d_]+(?:/[^\W\d_]+)?[²³]?(?:\^?[23])?)")
_MAX_CHARS = 1000  # no number is longer; keeps conversions of what a model babbles cheap
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
# Unit to (dimension, factor); spellings are reduced by `_unit`.
_UNITS = {
    "mm": ("m", 1e-3), "cm": ("m", 1e-2), "m": ("m", 1.0), "km": ("m", 1e3),
    "millimetre": ("m", 1e-3), "centimetre": ("m", 1e-2), "metre": ("m", 1.0), "kilometre": ("m", 1e3),
    "millimeter": ("m", 1e-3), "centimeter": ("m", 1e-2), "meter": ("m", 1.0), "kilometer": ("m", 1e3),
    "mg": ("g", 1e-3), "g": ("g", 1.0), "kg": ("g", 1e3), "gram": ("g", 1.0), "kilogram": ("g", 1e3),
    "ms": ("s", 1e-3), "s": ("s", 1.0), "sec": ("s", 1.0), "second": ("s", 1.0), "min": ("s", 60.0),
    "minute": ("s", 60.0), "h": ("s", 3600.0), "hour": ("s", 3600.0),
    "%": ("%", 1.0), "percent": ("%", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    value: float
    unit: str = ""  # as written, in lower case; empty when there is none


def read_number(text: str, *, alone: bool = False) -> Quantity | None:
    """The one number in ``text``; None when there is none, or when there are several (a hedge is no answer).

    ``1,234`` is a thousand and more, ``3,14`` a decimal; after ``=`` or ``≈`` only what follows the last one
    counts. ``alone``: nothing but a unit may stand beside it ("Apollo 11" is then no number).
    """
    if len(text) > _MAX_CHARS:
        return None
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    text = re.sub(r"(?<=\d)[\u2009\u202f\u00a0](?=\d{3})", " ", text)
    text = re.split(r"[=≈~]", text)[-1].strip(" $€£\\")
    word = text.casefold().strip(" .!")
    if word in _WORDS:
        return Quantity(float(_WORDS.index(word)))
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    match = found[0]
    value = _value(match)
    if value is None:
        return None
    quantity, rest = _scaled(value, text[match.end() :])
    return None if alone and (match.start() or rest.strip(" .")) else quantity


def equal_numbers(said: Quantity | None, reference: Quantity, meta: Mapping[str, Any]) -> bool:
    """Whether two quantities agree within ``meta``'s tolerances, in the reference's unit.

    A unit that one side leaves out is no error. Known units convert; unknown ones must be spelled alike.
    """
    if said is None or not math.isfinite(said.value):
        return False
    wanted = _unit(str(meta.get("unit", "")) or reference.unit)
    given = _unit(said.unit)
    value = said.value
    if wanted and given and wanted != given:
        (dimension, factor), (other, scale) = _UNITS.get(wanted, (wanted, 1.0)), _UNITS.get(given, (given, 1.0))
        if dimension != other:
            return False
        value = value * scale / factor
    relative = max(float(meta.get("relative_tolerance", 0.0)), 1e-9)  # 1e-9: what binary floats need
    slack = max(float(meta.get("tolerance", 0.0)), relative * abs(reference.value))
    return abs(value - reference.value) <= slack * (1 + 1e-9)


def _value(match: re.Match[str]) -> float | None:
    whole, decimals = match["whole"] or "0", match["decimals"] or ""
    value = float(re.sub(r"[ ,_']", "", whole) + decimals.replace(",", "."))
    power = match["power"] or match["exponent"]
    if power is not None:
        if abs(int(power)) > 300:
            return None
        value *= 10.0 ** int(power)
    if match["divisor"] is not None:
        if not float(match["divisor"]):
            return None
        value /= float(match["divisor"])
    return -value if match["sign"] == "-" else value


def _scaled(value: float, rest: str) -> tuple[Quantity, str]:
    """The quantity with its unit, and what is left of the text."""
    found = _UNIT.match(rest)
    unit = found.group(1).casefold() if found else ""
    rest = rest[found.end() :] if found else rest
    return _scaled(value * _SCALES[unit], rest) if unit in _SCALES else (Quantity(value, unit), rest)


def _unit(unit: str) -> str:
    unit = unit.casefold().strip(" .").replace("^", "").replace("²", "2").replace("³", "3").replace("° ", "°")
    return unit[:-1] if len(unit) > 2 and unit.endswith("s") and unit[:-1] in _UNITS else unit
