r"""Compares numbers and quantities: separators, signs, fractions, powers of ten, percent, words, currencies, units.

Values are exact fractions, so that `1/3` is not 0.333 and large integers differ in their last digit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from dv2_jax.rewards.answer_format import fold_characters, unwrap
from dv2_jax.rewards.units import CURRENCIES, SCALES, Unit, parse_unit

_MAX_CHARS = 1000  # no number is longer; bounds the cost of converting degenerate output
_MAX_DIGITS = 400
_MAX_POWER = 300  # of ten
_FLOAT_TOLERANCE = Fraction(1, 10**9)  # relative; rounding of binary floats that are printed in full
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORD_VALUES = {word: value for value, word in enumerate(_SMALL)} | {w: 20 + 10 * i for i, w in enumerate(_TENS)}

_CURRENCY = "".join(re.escape(symbol) for symbol in CURRENCIES if len(symbol) == 1)
_INTEGER = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ']\d{3})+(?!\d)|\d+(?:_\d{3})*"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?P<currency>[{_CURRENCY}]?)\s*(?P<sign2>[-+]?)\s*
    (?:
      (?P<mixed>\d+)\s+(?P<numerator>\d+)/(?P<denominator>\d+)
      | (?:(?P<european>\d{{1,3}}(?:\.\d{{3}})+,\d+|\d{{1,3}}(?:\.\d{{3}}){{2,}})(?!\d)
        | (?P<integer>{_INTEGER}|(?=[.,]\d)) (?P<decimals>[.,]\d+)? )
        (?:\s*(?:(?:x|\*|×|·|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[-+]?\s?\d+)\s*\}}?|[eE](?P<exponent>[-+]?\d+)))?
        (?:\s*/\s*(?P<divisor>\d+)(?![\d.,/]))?
    )""",
    re.VERBOSE,
)  # fmt: skip
_POWER = re.compile(r"(?P<sign>-?)\s*(?P<base>\d{1,3})\s*(?:\^|\*\*)\s*\{?\s*(?P<power>[-+]?\s?\d{1,3})\s*\}?")
# What may surround a number in a sentence: words and sentence punctuation, but nothing that changes its value.
_HARMLESS = re.compile(r"(?:[^\W\d_]|[\s.,:;'\"?])*")
_CHANGES_VALUE = frozenset(
    "not no non never neither nor without except minus negative plus times over under above below more less fewer than "
    "least most up beyond exceeding between or to through versus half halves third thirds quarter quarters fourth "
    "fourths fifth fifths sixth eighth tenth tenths hundredth hundredths thousandth thousandths double twice triple "
    "root sqrt square squared cubed power factorial log ln percent inverse reciprocal nearly almost unknown wrong "
    "incorrect dozen dozens hundred thousand million billion trillion pi per of bc bce ad ce am pm st nd rd th".split()
)
_APPROXIMATELY = re.compile(
    r"^(?:about|around|approximately|approx\.?|roughly|circa|ca\.|~|≈|\\approx)\s*", re.IGNORECASE
)
_LATEX_SPACING = re.compile(r"\\[,;:! ]|\\q?quad\b|(?<=\S)~")
_MINUS_WORD = re.compile(r"^(?:minus|negative)\s+(?=[\d.])", re.IGNORECASE)
_DECADE = re.compile(r"^\d{3}0s$")  # no seconds


@dataclass(frozen=True)
class Quantity:
    """A number with its unit; `unit` is None where none is written. `rounded`: written with decimals or an exponent."""

    value: Fraction
    unit: Unit | None = None
    rounded: bool = False


def number_matches(prediction: str, reference: str, meta: Mapping[str, Any]) -> bool:
    """Returns whether the one number in `prediction` is the reference within the tolerances of `meta`.

    Raises:
        ValueError: the reference is no number.
    """
    target = parse_quantity(reference) or find_quantity(reference)
    if target is None:
        raise ValueError(f"the reference {reference!r} of a number question is no number")
    pred = parse_quantity(prediction) or find_quantity(prediction)
    return pred is not None and equal_quantities(pred, target, meta)


def parse_quantity(text: str) -> Quantity | None:
    r"""Returns the quantity that `text` is, with nothing but a unit next to the number; None for anything else.

    `1,234` is a thousand and more, `3,14` a decimal, `1 1/4` a mixed number; LaTeX (`\frac{1}{2}`, `10^{3}`) and
    number words are understood.
    """
    if len(text) > _MAX_CHARS:
        return None
    text = _plain_latex(fold_characters(unwrap(text)))
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1].strip()
    if _DECADE.match(text):
        return None
    text = _MINUS_WORD.sub("-", text)
    words = _parse_words(text)
    if words is not None:
        return _with_unit(*words)
    if (power := _POWER.match(text)) and int(power["base"]):
        exponent = int(power["power"].replace(" ", ""))
        value = Fraction(int(power["base"])) ** exponent if abs(exponent) <= _MAX_POWER else None
        return None if value is None else _with_unit(-value if power["sign"] else value, text[power.end() :])
    match = _NUMBER.match(text)
    value = _value(match) if match else None
    if value is None:
        return None
    quantity = _with_unit(value, text[match.end() :], match["currency"])
    rounded = bool(match["decimals"] or match["power"] or match["exponent"])
    return replace(quantity, rounded=rounded) if quantity else None


def find_quantity(text: str) -> Quantity | None:
    """Returns the one quantity in a sentence; None where there is none or several (a list of guesses is no answer).

    After `=` or `≈` only what follows the last one counts.
    """
    if len(text) > _MAX_CHARS:
        return None
    text = _plain_latex(fold_characters(unwrap(text)))
    pieces = re.split(r"(?<![<>!≤≥])[=≈](?![>=])", text)
    if any(re.search(r"[,;]|\b(?:and|or)\b", piece) for piece in pieces[1:-1]) or re.search(r"\bnot?\b", pieces[0]):
        return None
    text = pieces[-1].strip()
    if len(pieces) > 1 or _APPROXIMATELY.match(text):
        quantity = parse_quantity(_APPROXIMATELY.sub("", text))
        if quantity is not None:
            return quantity
    starts = list(re.finditer(rf"(?<![\w.,/^*+{_CURRENCY}-])[-+]?[{_CURRENCY}]?[-+]?\.?\d", text))
    if not starts or not _is_harmless(text[: starts[0].start()]):
        return None
    # The longest piece that is a quantity by itself; anything behind it must not change its value.
    rest = text[starts[0].start() :]
    words = re.split(r"(\s+)", rest)
    for count in range(min(len(words), 16), 0, -1):
        head, tail = "".join(words[:count]), "".join(words[count:])
        quantity = parse_quantity(head.rstrip(".,;:?\"'"))
        if quantity is not None:
            return quantity if _is_harmless(tail) else None
    return None


def equal_quantities(pred: Quantity, target: Quantity, meta: Mapping[str, Any] | None = None) -> bool:
    """Returns whether two quantities agree within the tolerances of `meta`, in the reference's unit.

    A unit of measure that one side leaves out is assumed; another dimension, currency, era or half of the day is wrong.
    `50%` is 0.5, and 50 as well, because the question may ask for percent; but `0.5%` is not 0.5.
    """
    meta = meta or {}
    unit = parse_unit(str(meta["unit"])) if meta.get("unit") else target.unit
    value, wanted = pred.value, target.value
    if pred.unit is not None and unit is not None:
        if pred.unit.dimension != unit.dimension:
            return False
        value = value * pred.unit.factor / unit.factor
    elif (pred.unit or unit) is not None and not meta.get("unit"):
        only = pred.unit or unit
        if not only.may_be_omitted:
            return False
        if only.dimension == "%":
            percent, plain = (value, wanted) if pred.unit else (wanted, value)
            if _close(percent / 100, plain, meta):
                return True
            if abs(percent) <= 1:
                return False
    return _close(value, wanted, meta, exact=not (pred.rounded or target.rounded))


def _close(value: Fraction, wanted: Fraction, meta: Mapping[str, Any], *, exact: bool = False) -> bool:
    absolute = Fraction(str(meta.get("tolerance") or 0))
    relative = Fraction(str(meta.get("relative_tolerance") or 0))
    if exact and not absolute and not relative:
        return value == wanted
    slack = max(absolute, max(relative, _FLOAT_TOLERANCE) * abs(wanted))
    return abs(value - wanted) <= slack * (1 + _FLOAT_TOLERANCE)


def _is_harmless(text: str) -> bool:
    return bool(_HARMLESS.fullmatch(text)) and not _CHANGES_VALUE & set(re.findall(r"[^\W\d_]+", text.casefold()))


def _plain_latex(text: str) -> str:
    r"""Returns `text` with LaTeX of numbers and units rewritten: fractions, spacing, `\%`, `\text{cm}`, `^\circ`."""
    if "\\" in text or "{" in text or "~" in text:
        text = text.replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$")
        text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°", text)
        text = _LATEX_SPACING.sub(" ", text)
        text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2", text)
        text = re.sub(r"\\[dtc]?frac\s*\{\s*(-?)\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1 \2/\3", text)
        text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|operatorname|rm)\s*\{([^{}]*)\}", r" \1", text)
        text = re.sub(r"(?<=[A-Za-z])\^\s*\{\s*(-?\d)\s*\}", r"^\1", text)
    return " ".join(text.split())


def _value(match: re.Match[str]) -> Fraction | None:
    if sum(map(str.isdigit, match.group())) > _MAX_DIGITS or (match["sign"] and match["sign2"]):
        return None
    sign = -1 if "-" in (match["sign"], match["sign2"]) else 1
    if match["mixed"]:
        denominator = int(match["denominator"])
        proper = int(match["numerator"]) < denominator
        return sign * (int(match["mixed"]) + Fraction(int(match["numerator"]), denominator)) if proper else None
    if match["european"]:
        value = Fraction(match["european"].replace(".", "").replace(",", "."))
    else:
        integer, decimals = match["integer"] or "0", match["decimals"] or ""
        if "," in integer and decimals.startswith(","):
            return None
        value = Fraction(re.sub(r"[ ,_']", "", integer) + decimals.replace(",", "."))
    power = match["power"] or match["exponent"]
    if power is not None:
        exponent = int(power.replace(" ", ""))
        if abs(exponent) > _MAX_POWER:
            return None
        value *= Fraction(10) ** exponent
    if match["divisor"] is not None:
        if not int(match["divisor"]):
            return None
        value /= int(match["divisor"])
    return sign * value


def _parse_words(text: str) -> tuple[Fraction, str] | None:
    """Returns the value of leading English number words and the rest: `twenty-one`, `minus five`, `two hundred and six`."""
    if not re.match(r"[A-Za-z]", text):
        return None
    tokens = re.findall(r"[^\W\d_]+|\S", text.casefold().replace("-", " "))
    sign = -1 if tokens[:1] in (["minus"], ["negative"]) else 1
    position = first = 1 if sign < 0 else 0
    total = group = 0
    while position < len(tokens):
        word = tokens[position]
        if word in _WORD_VALUES:
            if group % 10 or (group % 100 and _WORD_VALUES[word] > 9):
                return None  # "two three", "twenty ten"
            group += _WORD_VALUES[word]
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in SCALES and group:
            total, group = total + group * SCALES[word], 0
        elif not (word == "and" and group and position + 1 < len(tokens) and tokens[position + 1] in _WORD_VALUES):
            break
        position += 1
    if position == first:
        return None
    rest = re.split(r"[\s-]+", text, maxsplit=position)
    return sign * Fraction(total + group), rest[position] if len(rest) > position else ""


def _with_unit(value: Fraction, rest: str, currency: str | None = "") -> Quantity | None:
    """Returns the quantity if `rest` is empty, a scale (`million`) or a unit; None otherwise."""
    rest = rest.strip()
    scale = re.match(r"([^\W\d_]+)\b\s*", rest)
    if scale and scale[1].casefold() in SCALES:
        value, rest = value * SCALES[scale[1].casefold()], rest[scale.end() :]
    if currency:
        unit = parse_unit(currency)
        named = parse_unit(rest) if rest else unit
        return Quantity(value, unit) if named is not None and named.dimension == unit.dimension else None
    if not rest:
        return Quantity(value)
    unit = parse_unit(rest)
    return None if unit is None else Quantity(value, unit)
