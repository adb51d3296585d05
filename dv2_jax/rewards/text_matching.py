"""Compares answers in words: letter case, accents, a leading article, quotation and sentence punctuation are ignored.

Symbols that carry meaning are kept: signs, operators, brackets around anything but words, factorials, primes,
superscripts, currencies, units and separators between digits.
"""

from __future__ import annotations

import re
import unicodedata

from dv2_jax.rewards.answer_format import fold_characters, unwrap
from dv2_jax.rewards.number_matching import equal_quantities, parse_quantity

_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}{{2,}}"
_MARK = re.compile("[\u0300-\u036f]")
_WORD_WITH_MARKS = re.compile(rf"(?:{_LETTER}[\u0300-\u036f]*){{2,}}")
_INITIALISM = re.compile(r"\b(?:[A-Za-z]\.){2,}|\b(?:[A-Z]\.)+[A-Z]\b")
_DECORATION = re.compile(rf"(?<=\w\w)[!?]+(?=\s|$)|(?<={_LETTER}{_LETTER})\.(?=\s|$)|\.\.\.+")
_QUOTES = re.compile(r"(?<![\w)\]])['\"]|(?<=[^\W\d_]{2})['\"](?!\w)|(?<=[!?.,])['\"]|(?<=[^\W\d_])'(?=[^\W\d_])")
_WORD_PUNCTUATION = re.compile(rf"(?<={_LETTER}{_LETTER})\s*[,;:](?=\s|{_WORD}|$)|(?<=\w)\s*[,;:](?=\s+{_WORD})")
_WORD_BRACKETS = re.compile(rf"(?:(?<=\s)|^)\(({_LETTER}[^\W\d_\s.,'-]*(?:[\s.,'-]+[^\W\d_]+)*\.?)\)(?=[\s.,;:]|$)")
_HYPHEN = re.compile(rf"(?<={_LETTER}{_LETTER})-(?=\w)|(?<=[\w])-(?={_WORD})|(?<={_LETTER}{_LETTER})\s+-\s+(?={_WORD})")
_LIST_COMMA = re.compile(r"\s*([,;])\s*")
_UNIT_SPACE = re.compile(r"(?<=\d)\s+(?=[%°])|(?<=[$€£¥₹])\s+(?=\d)|(?<=°)\s+(?=[cf]\b)")
_LEADING_ARTICLE = re.compile(rf"^(?:the|an?)\s+(?={_WORD})", re.IGNORECASE)
_INNER_ARTICLE = re.compile(rf"(?<=\s)the\s+(?={_WORD})", re.IGNORECASE)
_FORMULA = re.compile(r"(?:(?:[BCFHIKNOPSUVWY]|[A-Z][a-z])\d*){1,5}")
_SHORT_WORDS = frozenset("no up us in is on if so by of ok".split())
# After these, a capital A is a name (a key, a blood group, a grade), not an article.
_NAMED_BY_A = re.compile(
    r"^A\s+(?:minor|major|flat|sharp|positive|negative|level|levels|plus|minus|side|team|train|star|list|grade|group|"
    r"type|and|or|to|is|[A-Z])"
)  # fmt: skip


def text_matches(prediction: str, reference: str, *, case_of_letters: bool = False) -> bool:
    """Returns whether both say the same in words, or are the same number or quantity.

    With `case_of_letters` single letters keep their case, because they name variables or points.
    """
    prediction, reference = unwrap(prediction), unwrap(reference)
    if prediction == reference:
        return True
    quantities = parse_quantity(prediction), parse_quantity(reference)
    if None not in quantities:
        return equal_quantities(*quantities)  # also tells mW from MW
    if _are_other_formulas(prediction, reference):
        return False
    pred, target = (normalize_text(side, case_of_letters=case_of_letters) for side in (prediction, reference))
    return bool(pred) and pred == target


def _are_other_formulas(prediction: str, reference: str) -> bool:
    """Returns whether two chemical formulas differ by letter case: CO is not Co."""
    formulas = [fold_characters(side, subscripts_are_plain=True) for side in (prediction, reference)]
    return formulas[0] != formulas[1] and all(
        _FORMULA.fullmatch(formula) and formula.casefold() not in _SHORT_WORDS for formula in formulas
    )


def normalize_text(text: str, *, case_of_letters: bool = False) -> str:
    """Returns the form in which two answers in words are compared."""
    text = fold_characters(text, subscripts_are_plain=True)
    text = " ".join(_remove_articles(text.strip()).split())
    text = _INITIALISM.sub(lambda match: match.group().replace(".", ""), text)
    text = _without_accents(text)
    if case_of_letters:
        text = re.sub(_WORD, lambda word: word.group().casefold(), text)
    else:
        text = text.casefold()
    text = re.sub(rf"(?<={_LETTER})\s*&\s*(?={_LETTER})", " and ", text)
    text = _DECORATION.sub(" ", text)
    text = _QUOTES.sub("", text)
    text = _WORD_BRACKETS.sub(r"\1", text)
    text = _HYPHEN.sub(" ", text)
    text = _WORD_PUNCTUATION.sub(" ", text)
    text = _UNIT_SPACE.sub("", text)
    if _is_list(text):
        text = _LIST_COMMA.sub(r"\1", text)
    return " ".join(text.split()).strip()


def _remove_articles(text: str) -> str:
    text = _INNER_ARTICLE.sub("", text)
    if _NAMED_BY_A.match(text):
        return text
    rest = _LEADING_ARTICLE.sub("", text)
    return text if rest.casefold() in ("the", "an", "a") else rest


def _without_accents(text: str) -> str:
    """Returns `text` without accents on Latin letters of words; elsewhere such marks tell letters and symbols apart."""

    def strip(word: re.Match[str]) -> str:
        kept, base = [], ""
        for character in word.group():
            is_mark = _MARK.fullmatch(character)
            base = base if is_mark else character
            if not is_mark or "LATIN" not in unicodedata.name(base, ""):
                kept.append(character)
        return "".join(kept)

    return unicodedata.normalize("NFC", _WORD_WITH_MARKS.sub(strip, unicodedata.normalize("NFD", text)))


def _is_list(text: str) -> bool:
    """Returns whether commas separate items: inside brackets, between letters, or several that group no thousands."""
    if re.search(r"\d,\s*\d{3}(?!\d)", text) and not text.startswith(("(", "[", "{")):
        return False
    return text.startswith(("(", "[", "{")) or len(re.findall(r"[,;]", text)) > 1 or not re.search(r"\d\s*,", text)
