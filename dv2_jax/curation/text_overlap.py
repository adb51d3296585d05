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
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from datasketch import MinHash, MinHashLSH

NGRAM_WORDS = 13
MIN_NGRAM_WORDS = 5  # shorter questions occur in others by chance and must be equal
SHINGLE_CHARS = 5
PERMUTATIONS = 112  # 14 bands of 8 rows: pairs of similarity 0.72 are found with probability 1/2
_BANDS = (14, 8)
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
        counts: Counter[str] = Counter()
        total = 0
        for text in texts:
            total += 1
            found = sentences(text)
            if len(found) > 1:
                counts.update({_template_key(sentence) for sentence in found})
        least = max(min_count, min_share * total)
        return cls(frozenset(key for key, count in counts.items() if count >= least))

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
    kind: Literal["equal", "covered", "similar"]
    score: float


class TextOverlapIndex:
    """An index of texts by id, which finds the texts that a new one repeats.

    Args:
        templates: sentences to remove from every text first.
        min_coverage: share of n-grams from which on a text counts as covered.
        min_similarity: estimated Jaccard similarity from which on two texts count as similar.

    Memory: 112 hashes and the n-gram hashes of each text, about 2 kB for a question.
    """

    def __init__(
        self, templates: TemplateSentences | None = None, *, min_coverage: float = 0.7, min_similarity: float = 0.8
    ):
        self.templates = templates or TemplateSentences(frozenset())
        self.min_coverage, self.min_similarity = min_coverage, min_similarity
        self._equal: dict[str, list[str]] = {}
        self._by_ngram: dict[int, list[int]] = {}  # hash of an n-gram → numbers of texts
        self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=_BANDS)
        self._ids: list[str] = []
        self._hashes: list[MinHash] = []
        self._counts: list[int] = []  # number of n-grams of each text
        self._sizes: set[int] = set()  # lengths of the n-grams, in words

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id_: str, text: str) -> None:
        """Adds a text; equal ids are allowed and stay separate entries."""
        found = words(self.templates.remove(text))
        number = len(self._ids)
        self._ids.append(id_)
        self._equal.setdefault(" ".join(found), []).append(id_)
        size = min(NGRAM_WORDS, len(found))
        ngrams = set(_ngrams(found, size)) if size >= MIN_NGRAM_WORDS else set()
        self._counts.append(len(ngrams))
        self._sizes |= {size} if ngrams else set()
        for ngram in ngrams:
            self._by_ngram.setdefault(ngram, []).append(number)
        self._hashes.append(_minhash(found))
        self._lsh.insert(number, self._hashes[-1])

    def matches(self, text: str) -> list[TextMatch]:
        """Returns the indexed texts that `text` repeats or contains, the strictest kind for each, best first."""
        found = words(self.templates.remove(text))
        if not found:
            return []
        best: dict[str, TextMatch] = {}
        for id_ in self._equal.get(" ".join(found), ()):
            best[id_] = TextMatch(id_, "equal", 1.0)
        for number, score in self._covered(found):
            best.setdefault(self._ids[number], TextMatch(self._ids[number], "covered", score))
        own = _minhash(found)
        for number in self._lsh.query(own):
            score = own.jaccard(self._hashes[number])
            if score >= self.min_similarity:
                best.setdefault(self._ids[number], TextMatch(self._ids[number], "similar", score))
        return sorted(best.values(), key=lambda match: (-match.score, match.other))

    def _covered(self, found: list[str]) -> Iterator[tuple[int, float]]:
        """Yields (number of an indexed text, share of its n-grams that `found` contains) from `min_coverage` on."""
        hits: Counter[int] = Counter()
        for size in self._sizes:
            if size <= len(found):
                for ngram in set(_ngrams(found, size)):
                    hits.update(self._by_ngram.get(ngram, ()))
        for number, count in hits.items():
            share = count / self._counts[number]
            if share >= self.min_coverage:
                yield number, share


def _ngrams(found: list[str], size: int) -> Iterator[int]:
    for start in range(len(found) - size + 1):
        yield hash((size, *found[start : start + size]))


def _minhash(found: list[str]) -> MinHash:
    text = " ".join(found)
    shingles = {text[i : i + SHINGLE_CHARS].encode() for i in range(max(1, len(text) - SHINGLE_CHARS + 1))}
    result = MinHash(num_perm=PERMUTATIONS, seed=1)
    result.update_batch(sorted(shingles))
    return result
