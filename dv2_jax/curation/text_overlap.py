"""Finds questions that repeat others in words: equal, contained in one another, or nearly equal.

Three measures, from strict to lenient:

- *equal*: the same words after normalization;
- *covered*: the share of a question's 13-grams that the other text contains (Brown et al., 2020, arXiv 2005.14165, use
  13-grams); a shorter question is compared as one n-gram of its own length;
- *similar*: estimated Jaccard similarity of 5-gram sets by MinHash (Broder, 1997), found by locality-sensitive hashing.

Sentences that many rows share ("Answer with the option's letter") are removed first: without that, every question of a
source would match every other.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from datasketch import MinHash
from jaxtyping import UInt32

from dv2_jax.curation.temporary_database import in_chunks, key_text, open_temporary_database, text_key

NGRAM_WORDS = 13
MIN_NGRAM_WORDS = 5  # shorter questions occur in others by chance and must be equal
SHINGLE_CHARS = 5
PERMUTATIONS = 112  # 14 bands of 8 rows: pairs of similarity 0.72 are found with probability 1/2
_BANDS = (14, 8)
_EMPTY = MinHash(num_perm=PERMUTATIONS, seed=1)
TextKind = Literal["equal", "covered", "similar"]
_SENTENCE = re.compile(r"(?<=[.!?:;。！？])\s+|\n+")
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation, accents kept (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def sentences(text: str) -> list[str]:
    """Splits a text at sentence ends and line breaks; image markers are dropped."""
    parts = _SENTENCE.split(text.replace("<image>", " "))
    return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class TemplateSentences:
    """The sentences that so many texts contain that they say nothing about a single one."""

    templates: frozenset[str]

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_share: float = 0.01, min_count: int = 20) -> TemplateSentences:
        """Collects the sentences that at least `min_count` texts and `min_share` of the texts contain.

        Numbers are treated as equal, since templates often contain a size or an index. A sentence that is all of its
        text is no template, however often it occurs: the text is then a repeated question.
        """
        database = open_temporary_database("CREATE TABLE sentences (key BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID")
        count = "INSERT INTO sentences VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1"
        total = 0
        for text in texts:
            total += 1
            found = sentences(text)
            if len(found) > 1:
                database.executemany(count, {(text_key(_template_key(sentence)),) for sentence in found})
        least = max(min_count, min_share * total)
        rows = database.execute("SELECT key FROM sentences WHERE count >= ?", (least,))
        templates = frozenset(key_text(key) for (key,) in rows)
        database.close()
        return cls(templates)

    def remove(self, text: str) -> str:
        """Returns the text without template sentences, or unchanged if nothing would remain."""
        kept = [sentence for sentence in sentences(text) if _template_key(sentence) not in self.templates]
        return " ".join(kept) if kept else text


def _template_key(sentence: str) -> str:
    return " ".join("#" if word.isdigit() else word for word in words(sentence))


@dataclass(frozen=True)
class TextMatch:
    """Two texts that repeat each other; `score` is 1 for equal ones, else the coverage or the estimated similarity."""

    other: str
    kind: TextKind
    score: float


class TextOverlapIndex:
    """An index of texts by id, which finds the texts that a new one repeats.

    Args:
        templates: sentences to remove from every text first.
        min_coverage: share of n-grams from which on a text counts as covered.
        min_similarity: estimated Jaccard similarity from which on two texts count as similar.

    The index is a temporary database on disk, about 1 kB for a question of 24 words; memory does not grow with it.
    """

    def __init__(
        self, templates: TemplateSentences | None = None, *, min_coverage: float = 0.7, min_similarity: float = 0.8
    ):
        self.templates = templates or TemplateSentences(frozenset())
        self.min_coverage, self.min_similarity = min_coverage, min_similarity
        # `keys` has the hashes of a text's words in order, of its n-grams and of the bands of its signature.
        self._database = open_temporary_database(
            "CREATE TABLE texts (number INTEGER PRIMARY KEY, id BLOB, ngrams INTEGER, signature BLOB)",
            "CREATE TABLE keys (key INTEGER, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID",
        )
        self._count = 0
        self._sizes: set[int] = set()  # lengths of the n-grams, in words

    def __len__(self) -> int:
        return self._count

    def add(self, id_: str, text: str) -> int:
        """Adds a text and returns its number, from 0; equal ids are allowed and stay separate entries."""
        found = words(self.templates.remove(text))
        number, size = self._count, min(NGRAM_WORDS, len(found))
        ngrams = set(_ngrams(found, size)) if size >= MIN_NGRAM_WORDS else set()
        signature = _signature(" ".join(found))
        self._count += 1
        self._sizes |= {size} if ngrams else set()
        self._database.execute(
            "INSERT INTO texts VALUES (?, ?, ?, ?)", (number, text_key(id_), len(ngrams), signature.tobytes())
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO keys VALUES (?, ?)",
            ((key, number) for key in (_equality_key(found), *ngrams, *_band_keys(signature))),
        )
        return number

    def matches(self, text: str) -> list[TextMatch]:
        """Returns the indexed texts that `text` repeats or contains, the strictest kind for each id, best first."""
        best: dict[str, TextMatch] = {}
        for number, kind, score in self.numbered_matches(text):
            (key,) = self._database.execute("SELECT id FROM texts WHERE number = ?", (number,)).fetchone()
            id_ = key_text(key)
            best.setdefault(id_, TextMatch(id_, kind, score))
        return sorted(best.values(), key=lambda match: (-match.score, match.other))

    def numbered_matches(
        self, text: str, *, among: Iterable[int] | None = None, limit: int | None = None
    ) -> list[tuple[int, TextKind, float]]:
        """Returns (number, kind, score) of the indexed texts that `text` repeats or contains, the strictest kind first.

        Args:
            among: numbers to which the search is limited, None: all.
            limit: number of texts with one n-gram or hash that are looked at, the oldest ones; None: all. Not with `among`.
        """
        found = words(self.templates.remove(text))
        if not found:
            return []
        select = _KeySelect(self._database, None if among is None else sorted(set(among)), limit)
        matches: dict[int, tuple[int, TextKind, float]] = {}
        for number in select.numbers([_equality_key(found)]):
            matches[number] = number, "equal", 1.0
        for number, score in self._covered(found, select):
            matches.setdefault(number, (number, "covered", score))
        own = _signature(" ".join(found))
        for number in set(select.numbers(_band_keys(own))) - matches.keys():
            (stored,) = self._database.execute("SELECT signature FROM texts WHERE number = ?", (number,)).fetchone()
            score = float(np.mean(np.frombuffer(stored, np.uint32) == own))
            if score >= self.min_similarity:
                matches[number] = number, "similar", score
        return list(matches.values())

    def _covered(self, found: list[str], select: _KeySelect) -> Iterator[tuple[int, float]]:
        """Yields (number of an indexed text, share of its n-grams that `found` contains) from `min_coverage` on."""
        keys = {ngram for size in self._sizes if size <= len(found) for ngram in _ngrams(found, size)}
        for number, count in Counter(select.numbers(keys)).items():
            (total,) = self._database.execute("SELECT ngrams FROM texts WHERE number = ?", (number,)).fetchone()
            if count >= self.min_coverage * total:
                yield number, count / total


class _KeySelect:
    """Selects the numbers of texts by keys, all or among given ones."""

    def __init__(self, database: sqlite3.Connection, among: Sequence[int] | None, limit: int | None):
        self._database, self._among, self._limit = database, among, limit

    def numbers(self, keys: Iterable[int]) -> Iterator[int]:
        """Yields the number of every text with one of the keys, once per key that it has."""
        if self._limit is not None:
            for key in keys:
                rows = self._database.execute("SELECT number FROM keys WHERE key = ? LIMIT ?", (key, self._limit))
                yield from (number for (number,) in rows)
            return
        for places, part in in_chunks(keys):
            if self._among is None:
                rows = self._database.execute(f"SELECT number FROM keys WHERE key IN ({places})", part)
                yield from (number for (number,) in rows)
                continue
            for other_places, numbers in in_chunks(self._among):
                condition = f"key IN ({places}) AND number IN ({other_places})"
                rows = self._database.execute(f"SELECT number FROM keys WHERE {condition}", [*part, *numbers])
                yield from (number for (number,) in rows)


def _ngrams(found: list[str], size: int) -> Iterator[int]:
    for start in range(len(found) - size + 1):
        yield hash((size, *found[start : start + size]))


def _equality_key(found: list[str]) -> int:
    return hash((0, *found))


@lru_cache(maxsize=4)  # a text is compared with others and then added
def _signature(text: str) -> UInt32[np.ndarray, "112"]:
    """Returns the MinHash signature of a text's character 5-grams; not to be modified."""
    shingles = {text[i : i + SHINGLE_CHARS].encode() for i in range(max(1, len(text) - SHINGLE_CHARS + 1))}
    result = _EMPTY.copy()  # faster than a new one, which draws its permutations
    result.update_batch(sorted(shingles))
    return result.hashvalues.astype(np.uint32)  # hashes are below 2**32


def _band_keys(signature: UInt32[np.ndarray, "112"]) -> Iterator[int]:
    """Yields a key per band: texts that share one are candidates."""
    for number, band in enumerate(signature.reshape(_BANDS)):
        yield hash((number, band.tobytes()))
