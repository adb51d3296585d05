"""Folds letters, so that a query finds a word written with other accents, widths or cases.

Applied to documents and queries alike, before the tokenizer: NFKC, case folding, and removal of the marks of Latin,
Greek, Cyrillic, Arabic and Hebrew letters. Marks that are vowels or tones (Indic scripts, Thai) and the voicing marks
of kana distinguish words and stay.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Scripts written without spaces, and Hangul, whose particles are attached to words: one token per character.
# Ranges for a character class of Python's and of Rust's regular expressions.
CHARACTER_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3040-\u30ff\u3100-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"  # Han, kana, bopomofo, Hangul
)
_IN_CHARACTER_SCRIPT = re.compile(f"[{CHARACTER_SCRIPTS}]")
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f]"
)
# Letters without a decomposition in Unicode; the rest of Lucene's ASCIIFoldingFilter follows from NFKC.
_PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "ŧ": "t", "ŋ": "n", "þ": "th", "æ": "ae", "œ": "oe",
     "ə": "e", "ʼ": "'", "ʻ": "'"}
)  # fmt: skip
# A letter with the marks or conjoining jamo after it: the smallest part of a text that can be folded alone.
_CLUSTER = re.compile(f"[\u1100-\u11ff]+|.(?:{_MARKS.pattern}|[\u3099\u309a])*", re.DOTALL)


def fold(text: str) -> str:
    """Returns the text with plain lower-case letters and ASCII digits."""
    if text.isascii():
        return text.lower()
    return "".join(map(_fold_cluster, _CLUSTER.findall(text)))


def fold_with_offsets(text: str) -> tuple[str, list[int]]:
    """Returns the folded text and, per folded character and for its end, the position in `text` that it comes from."""
    if text.isascii():
        return text.lower(), list(range(len(text) + 1))
    parts, offsets = [], []
    for cluster in _CLUSTER.finditer(text):
        part = _fold_cluster(cluster.group())
        parts.append(part)
        offsets += [cluster.start()] * len(part)
    return "".join(parts), [*offsets, len(text)]


def query_pieces(query: str) -> list[str]:
    """Splits a query into distinct folded words and, for scripts without spaces, pairs of adjacent characters."""
    pieces: dict[str, None] = {}
    for run in _runs(fold(query)):
        if _IN_CHARACTER_SCRIPT.match(run) and len(run) > 2:
            pieces.update(dict.fromkeys(run[i : i + 2] for i in range(len(run) - 1)))
        else:
            pieces[run] = None
    return list(pieces)


def _runs(text: str) -> list[str]:
    """Splits text into runs of letters, digits and marks, and where a script with spaces meets one without."""
    runs: list[str] = []
    previous = None
    for character in text:
        kind = _kind(character)
        if kind and kind == previous:
            runs[-1] += character
        elif kind:
            runs.append(character)
        previous = kind
    return runs


@lru_cache(maxsize=1 << 14)
def _kind(character: str) -> str:
    """Returns `characters` or `words` for a part of a token, and an empty string for a separator."""
    if character != "_" and unicodedata.category(character)[0] not in "LNM":
        return ""
    return "characters" if _IN_CHARACTER_SCRIPT.match(character) else "words"


@lru_cache(maxsize=1 << 16)
def _fold_cluster(cluster: str) -> str:
    plain = unicodedata.normalize("NFKC", cluster).casefold().translate(_PLAIN_LETTERS)
    plain = _MARKS.sub("", unicodedata.normalize("NFKD", plain))
    plain = unicodedata.normalize("NFC", plain)
    return "".join(_fold_character(character) for character in plain)


def _fold_character(character: str) -> str:
    """Replaces a decimal digit of any script by its ASCII digit, and removes invisible characters and lone surrogates."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return "" if unicodedata.category(character) in ("Cf", "Cs") else character
