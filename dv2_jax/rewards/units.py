"""Units of measure: written forms, dimensions and exact factors. Unknown nouns are units of their own dimension."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "bn": 10**9, "mn": 10**6}  # fmt: skip
CURRENCIES = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "₩": "₩", "usd": "$", "dollar": "$", "eur": "€",
              "euro": "€", "gbp": "£", "pound sterling": "£", "jpy": "¥", "yen": "¥", "cny": "CNY", "rmb": "CNY",
              "yuan": "CNY", "inr": "₹", "rupee": "₹", "won": "₩", "us dollar": "$"}  # fmt: skip
_F = Fraction
# Written form to (dimension, factor). One- to three-letter symbols are case-sensitive (mW is not MW).
_UNITS: dict[str, tuple[str, Fraction]] = {
    "nm": ("m", _F(1, 10**9)), "µm": ("m", _F(1, 10**6)), "μm": ("m", _F(1, 10**6)), "mm": ("m", _F(1, 1000)),
    "cm": ("m", _F(1, 100)), "dm": ("m", _F(1, 10)), "m": ("m", _F(1)), "km": ("m", _F(1000)),
    "millimeter": ("m", _F(1, 1000)), "centimeter": ("m", _F(1, 100)), "meter": ("m", _F(1)),
    "kilometer": ("m", _F(1000)), "inch": ("m", _F(254, 10000)), "in": ("m", _F(254, 10000)),
    "ft": ("m", _F(3048, 10000)), "foot": ("m", _F(3048, 10000)), "yd": ("m", _F(9144, 10000)),
    "yard": ("m", _F(9144, 10000)), "mi": ("m", _F(1609344, 1000)), "mile": ("m", _F(1609344, 1000)),
    "mg": ("g", _F(1, 1000)), "g": ("g", _F(1)), "kg": ("g", _F(1000)), "gram": ("g", _F(1)),
    "kilogram": ("g", _F(1000)), "t": ("g", _F(10**6)), "ton": ("ton", _F(1)), "tonne": ("g", _F(10**6)),
    "lb": ("lb", _F(16)), "lbs": ("lb", _F(16)), "pound": ("lb", _F(16)), "oz": ("lb", _F(1)), "ounce": ("lb", _F(1)),
    "ms": ("s", _F(1, 1000)), "s": ("s", _F(1)), "sec": ("s", _F(1)), "second": ("s", _F(1)), "min": ("s", _F(60)),
    "minute": ("s", _F(60)), "h": ("s", _F(3600)), "hr": ("s", _F(3600)), "hrs": ("s", _F(3600)),
    "hour": ("s", _F(3600)), "day": ("s", _F(86400)), "week": ("s", _F(7 * 86400)), "month": ("month", _F(1)),
    "year": ("month", _F(12)), "yr": ("month", _F(12)),
    "ml": ("l", _F(1, 1000)), "mL": ("l", _F(1, 1000)), "cl": ("l", _F(1, 100)), "l": ("l", _F(1)), "L": ("l", _F(1)),
    "liter": ("l", _F(1)), "milliliter": ("l", _F(1, 1000)),
    "N": ("N", _F(1)), "kN": ("N", _F(1000)), "newton": ("N", _F(1)), "J": ("J", _F(1)), "kJ": ("J", _F(1000)),
    "joule": ("J", _F(1)), "kWh": ("J", _F(3600000)), "mW": ("W", _F(1, 1000)), "W": ("W", _F(1)), "watt": ("W", _F(1)),
    "kW": ("W", _F(1000)), "MW": ("W", _F(10**6)), "kilowatt": ("W", _F(1000)), "megawatt": ("W", _F(10**6)),
    "V": ("V", _F(1)), "mV": ("V", _F(1, 1000)), "kV": ("V", _F(1000)), "volt": ("V", _F(1)), "A": ("A", _F(1)),
    "mA": ("A", _F(1, 1000)), "ampere": ("A", _F(1)), "amp": ("A", _F(1)), "Ω": ("Ω", _F(1)), "ohm": ("Ω", _F(1)),
    "kΩ": ("Ω", _F(1000)), "Hz": ("Hz", _F(1)), "kHz": ("Hz", _F(1000)), "MHz": ("Hz", _F(10**6)),
    "GHz": ("Hz", _F(10**9)), "hertz": ("Hz", _F(1)), "Pa": ("Pa", _F(1)), "kPa": ("Pa", _F(1000)),
    "MPa": ("Pa", _F(10**6)), "pascal": ("Pa", _F(1)), "mol": ("mol", _F(1)), "mole": ("mol", _F(1)),
    "mph": ("m/s", _F(1609344, 3600000)), "kph": ("m/s", _F(10, 36)), "kmh": ("m/s", _F(10, 36)),
    "°": ("°", _F(1)), "degree": ("°", _F(1)), "deg": ("°", _F(1)), "rad": ("rad", _F(1)), "radian": ("rad", _F(1)),
    "°c": ("°C", _F(1)), "celsius": ("°C", _F(1)), "°f": ("°F", _F(1)), "fahrenheit": ("°F", _F(1)),
    "K": ("K", _F(1)), "kelvin": ("K", _F(1)),
    "%": ("%", _F(1)), "percent": ("%", _F(1)), "pct": ("%", _F(1)),
    "hectare": ("m^2", _F(10**4)), "ha": ("m^2", _F(10**4)), "acre": ("acre", _F(1)),
    "B": ("byte", _F(1)), "byte": ("byte", _F(1)), "kB": ("byte", _F(10**3)), "KB": ("byte", _F(10**3)),
    "MB": ("byte", _F(10**6)), "GB": ("byte", _F(10**9)), "TB": ("byte", _F(10**12)), "bit": ("bit", _F(1)),
    "kb": ("bit", _F(10**3)), "Mb": ("bit", _F(10**6)), "Gb": ("bit", _F(10**9)),
    "cent": ("$", _F(1, 100)), "¢": ("$", _F(1, 100)), "unit": ("unit", _F(1)),
}  # fmt: skip
_UNITS |= {name: (symbol, _F(1)) for name, symbol in CURRENCIES.items()}
_SYNONYMS = {"metre": "meter", "litre": "liter", "feet": "foot", "inches": "inch", "percentage points": "pp",
              "per cent": "percent", "degrees celsius": "°c", "degree celsius": "°c", "degrees c": "°c",
              "degrees fahrenheit": "°f", "degree fahrenheit": "°f", "degrees f": "°f", "u.s. dollars": "us dollar",
              "pounds sterling": "pound sterling", "metric tons": "tonne", "metric tonnes": "tonne"}  # fmt: skip
_REQUIRED = frozenset("bc bce ad ce am pm a.m p.m st nd rd th times pp squared cubed factorial o'clock ordinal".split())
# No units: words that turn the number next to them into another one.
_NOT_UNITS = frozenset(
    "squared cubed factorial minus plus over under above below or and to not no times half halves third thirds quarter "
    "quarters fourth fourths fifth fifths sixth eighth tenth tenths hundredth hundredths thousandth thousandths root "
    "power divided multiplied less more fewer than up ago negative is are if but if hundred hundreds thousands millions "
    "billions dozens of per in at on for from by with zero one two three four five six seven eight nine ten eleven twelve "
    "twenty thirty forty fifty sixty seventy eighty ninety".split()
)
_WORD = re.compile(r"[^\W\d_]+|°\s?[A-Za-z]?|[%$€£¥₹₩¢]")
_POWER_WORDS = (("square ", 2), ("sq. ", 2), ("sq ", 2), ("cubic ", 3), ("cu ", 3))


@dataclass(frozen=True)
class Unit:
    """A dimension and the factor to its base unit; without `may_be_omitted` its absence changes the meaning."""

    dimension: str
    factor: Fraction = Fraction(1)
    may_be_omitted: bool = True


def parse_unit(text: str) -> Unit | None:
    """Returns the unit that `text` consists of; None where it is no unit.

    An unknown noun is a unit (`apples`), which the other side may leave out only if it is written in lower case.
    """
    text = " ".join(text.strip(" .").split())
    text = _SYNONYMS.get(text.casefold(), text)
    if text.casefold() in _REQUIRED - _NOT_UNITS and text not in _UNITS:
        return Unit(text.casefold().replace(".", "").replace("bce", "bc"), may_be_omitted=False)
    above, per, below = text.partition("/")
    if not per:
        above, per, below = text.partition(" per ")
    upper = _parse_factor(above)
    if not per or upper is None:
        return upper
    lower = _parse_factor(below)
    return None if lower is None else Unit(f"{upper.dimension}/{lower.dimension}", upper.factor / lower.factor)


def _parse_factor(text: str) -> Unit | None:
    text = text.strip()
    text = _SYNONYMS.get(text.casefold(), text)
    power = 1
    for word, exponent in _POWER_WORDS:
        if text.casefold().startswith(word):
            text, power = text[len(word) :], exponent
    if written := re.search(r"\^?\s?([23])$|\s(squared|cubed)$", text):
        power, text = int(written[1] or (2 if written[2] == "squared" else 3)), text[: written.start()]
    known = _lookup(text)
    if known is not None:
        dimension, factor = known
        return _cubed_liter(dimension, factor, power)
    if power > 1 or not re.fullmatch(r"[^\W\d_]{2,}", text) or text.casefold() in _NOT_UNITS:
        return None
    noun = text.casefold()
    noun = noun[:-1] if len(noun) > 3 and noun.endswith("s") and not noun.endswith("ss") else noun
    return Unit(noun, may_be_omitted=text.islower() or not text.isascii())


def _cubed_liter(dimension: str, factor: Fraction, power: int) -> Unit:
    """Returns the unit to its power; a liter is a cubic decimeter."""
    if dimension == "l" and power == 1:
        return Unit("m^3", factor / 1000)
    return Unit(dimension if power == 1 else f"{dimension}^{power}", factor**power)


def _lookup(text: str) -> tuple[str, Fraction] | None:
    text = text.replace("° ", "°")
    if text in _UNITS:
        return _UNITS[text]
    word = text.casefold()
    for british, plain in (("metre", "meter"), ("litre", "liter")):
        word = word.replace(british, plain)
    if text.startswith("°") or (len(word) == 2 and text[0] == text[0].upper() and word in ("km", "kg", "cm")):
        return _UNITS.get(word)
    for form in (word, _SYNONYMS.get(word, word), word[:-1] if word.endswith("s") else word):
        if len(form) > 3 or form in ("usd", "eur", "gbp", "jpy", "cny", "inr", "rmb", "yen", "won", "mph", "kph", "pct", "day", "ton"):  # fmt: skip
            if form in _UNITS:
                return _UNITS[form]
    return None
