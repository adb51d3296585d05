r"""Removes the wrapping of an answer (LaTeX delimiters, `\boxed`, Markdown, "The answer is") and folds typography.

Nothing here changes meaning: superscripts become powers, vulgar fractions become quotients, and every dash becomes a
hyphen, so that the rules for text, numbers and mathematics see one character per concept.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_SUBSCRIPT_RUN = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_PLAIN_FORMS = ("<wide>", "<narrow>", "<compat>", "<noBreak>", "<font>", "<square>")  # Unicode decomposition tags
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63", "-")
    | dict.fromkeys("‘’‚′`´", "'")
    | dict.fromkeys("“”„«»″", '"')
    | dict.fromkeys("\u200b\u2060\ufeff\u00ad\u200e\u200f")
    | {"\u2044": "/", "\u2215": "/", "。": ".", "、": ","}
)
_PREFIX = re.compile(
    r"^(?:(?:so|thus|therefore|hence)[,:]?\s+)?(?:i\s+(?:think|believe|conclude)\s+(?:that\s+)?)?(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best)\s+)*"
    r"(?:answer|result|option|choice)(?:\s+to\s+(?:the|this)\s+question)?\s*(?:\bis\b|\bare\b|[:=])\s*:?\s*",
    re.IGNORECASE,
)
_WRAPPERS = re.compile(r"^\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|operatorname)\s*(?=\{)")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("*", "*"), ("__", "__"), ("'", "'"), ('"', '"'))  # fmt: skip
_BOLD = re.compile(r"(?<!\S)(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?=$|[\s.,:;!?)])")
_ABBREVIATION = re.compile(r"\.[A-Za-z]\.$")  # "U.S.": the last period belongs to it


def fold_characters(text: str, *, subscripts_are_plain: bool = False) -> str:
    """Returns `text` with one character per concept.

    Full-width, mathematical and ligature forms become plain characters; `10³` becomes `10^3`, `½` becomes `1/2`.
    Subscripts become `_n`, or with `subscripts_are_plain` the bare digits after a letter or bracket (`H₂O`, `H2O`).
    """
    text = unicodedata.normalize("NFC", text)
    text = _SUPERSCRIPT_RUN.sub(lambda run: _script("^", "".join(map(_SUPERSCRIPTS.__getitem__, run.group()))), text)

    def subscript(run: re.Match[str]) -> str:
        digits = "".join(map(_SUBSCRIPTS.__getitem__, run.group()))
        before = text[run.start() - 1 : run.start()]
        plain = subscripts_are_plain and (before.isalpha() or before == ")")
        return digits if plain else _script("_", digits)

    text = _SUBSCRIPT_RUN.sub(subscript, text.translate(_TYPOGRAPHY))
    return "".join(_plain_form(text, index) for index in range(len(text))) if not text.isascii() else text


def _script(mark: str, characters: str) -> str:
    return f"{mark}{characters}" if len(characters) == 1 else f"{mark}{{{characters}}}"


def _plain_form(text: str, index: int) -> str:
    character = text[index]
    decomposition = unicodedata.decomposition(character)
    if decomposition.startswith("<fraction>"):
        separator = " " if index and text[index - 1].isdigit() else ""
        return separator + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    if decomposition.startswith(_PLAIN_FORMS):
        plain = unicodedata.normalize("NFKC", character)
        if not any(unicodedata.combining(part) for part in plain):  # a spacing accent is no letter
            return plain
    return character


def unwrap(text: str) -> str:
    r"""Returns the answer without its wrapping: delimiters and text commands around all of it, "The answer is", a period.

    A `\boxed{...}` inside a longer answer is replaced by its content, or is the answer where a sentence ends before it.
    """
    while True:
        shorter = _unwrap_once(text.strip())
        if shorter == text:
            return text
        text = shorter


def _unwrap_once(text: str) -> str:
    if text.endswith((".", "。")) and not text.endswith("..") and not _ABBREVIATION.search(text):
        text = text[:-1].rstrip()
    without_prefix = _PREFIX.sub("", text)
    text = _BOLD.sub(r"\2", without_prefix or text)
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        wrapped = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if wrapped and inner.strip() and opening not in inner and closing not in inner and not inner.endswith("\\"):
            return inner.strip()
    command = _WRAPPERS.match(text)
    if command and closing_brace(text, command.end()) == len(text) - 1:
        return text[command.end() + 1 : -1].strip()
    return _replace_boxed(text)


def _replace_boxed(text: str) -> str:
    found = re.search(r"\\(?:boxed|fbox)\s*(?=\{)", text)
    if not found or (end := closing_brace(text, found.end())) is None:
        return text
    content = text[found.end() + 1 : end]
    before, after = text[: found.start()].rstrip(" $"), text[end + 1 :].strip(" $.")
    if not after and before.endswith((".", ":", "\n")) and not re.search(r"\bnot\b", before):
        return content.strip()
    return text[: found.start()] + content + text[end + 1 :]


def closing_brace(text: str, opening: int) -> int | None:
    """Returns the index of the brace that closes the one at `opening`; None where it is never closed."""
    depth = 0
    for index in range(opening, len(text)):
        if text[index - 1 : index] == "\\":
            continue
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return None
