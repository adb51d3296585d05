"""Combines the overlaps of texts and images of two questions into one decision with a reason.

There are two indexes. Against a benchmark a strong match of images alone is enough to drop a row, since a model must not have
seen its images; all its images are indexed by keypoints. Within a set, several questions about one image are usual: images
are compared only where the questions match, so that no index of keypoints is needed and a set may have any size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import UInt32

from dv2_jax.curation.image_overlap import (
    MIN_CONTRAST,
    MIN_CORRELATION,
    MIN_VOTES,
    REVIEW_BITS,
    STRONG_BITS,
    Features,
    ImageMatch,
    ImageOverlapIndex,
    aligned_correlation,
    contrast,
    decode_gray,
    find_features,
    hamming,
    image_digests,
    keypoint_keys,
    perceptual_hash,
)
from dv2_jax.curation.temporary_database import in_chunks, key_text, open_temporary_database, text_key
from dv2_jax.curation.text_overlap import TemplateSentences, TextMatch, TextOverlapIndex
from dv2_jax.data.question import Question

MAX_ALIKE = 200  # rows with the same words whose images are searched for crops; equal and near images have no limit
BENCHMARK, ROWS = "benchmark", "rows"  # what a row was compared with
_KINDS = {
    "equal": "same image",
    "near": "re-encoded or resized image",
    "crop": "crop of the image",
    "review": "similar image",
}
_ORDER = ("equal", "near", "crop", "review")


@dataclass(frozen=True)
class Overlap:
    """Two questions that repeat each other. `drop`: without doubt; otherwise the pair is for a person to review."""

    other: str
    drop: bool
    reason: str
    text_score: float = 0.0
    image_bits: int = 64


class BenchmarkOverlapIndex:
    """An index of benchmark questions by id. An image that several questions share is indexed once.

    Args:
        templates: sentences that say nothing about a single question.
    """

    def __init__(self, templates: TemplateSentences | None = None):
        self._texts = TextOverlapIndex(templates)
        self._images = ImageOverlapIndex()
        self._owners: dict[str, list[str]] = {}  # digest of an image → ids of questions
        self._has_image: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._has_image)

    def add(self, id_: str, question: Question) -> None:
        """Adds a question; images that cannot be decoded are left out."""
        self._texts.add(id_, question.text)
        self._has_image[id_] = bool(question.images)
        for image in question.images:
            digest = hashlib.sha256(image).hexdigest()
            if digest not in self._owners:
                try:
                    self._images.add(digest, image)
                except OSError:
                    continue
                self._owners[digest] = []
            self._owners[digest].append(id_)

    def overlaps(self, question: Question) -> list[Overlap]:
        """Returns the indexed questions that `question` repeats, certain ones first."""
        texts = {match.other: match for match in self._texts.matches(question.text)}
        images = self._image_matches(question)
        found = [
            self._combine(other, texts.get(other), images.get(other), self._has_image[other] or bool(question.images))
            for other in dict.fromkeys([*texts, *images])
        ]
        return _certain_first(overlap for overlap in found if overlap is not None)

    def _image_matches(self, question: Question) -> dict[str, ImageMatch]:
        found: dict[str, ImageMatch] = {}
        for image in question.images:
            try:
                matches = self._images.matches(image)
            except OSError:
                continue
            for match in matches:
                for owner in self._owners[match.other]:
                    found.setdefault(owner, match)
        return found

    def _combine(
        self, other: str, text: TextMatch | None, image: ImageMatch | None, has_images: bool
    ) -> Overlap | None:
        """Decides on one pair. The same words about another image are another question ("How many dogs are there?")."""
        score = 0.0 if text is None else text.score
        if image is not None and (text is not None or image.is_strong):
            return _with_image(other, image, "" if text is None else text.kind, score)
        if image is not None:
            return Overlap(other, False, _KINDS[image.kind], image_bits=image.bits)
        return None if text is None or has_images else _without_image(other, text.kind, score)


class RowOverlapIndex:
    """An index of the rows of a set by id, in temporary databases on disk: memory holds 13 bytes per image.

    Args:
        templates: sentences that say nothing about a single question.
        read_images: returns the encoded images of an indexed row by its id.
    """

    def __init__(self, templates: TemplateSentences | None, read_images: Callable[[str], Sequence[bytes]]):
        self._texts = TextOverlapIndex(templates)
        # `keys` are those of the keypoints of an image, sorted; none where it is nearly uniform.
        self._database = open_temporary_database(
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, id BLOB, has_images INTEGER)",
            "CREATE TABLE images (number INTEGER PRIMARY KEY, row INTEGER, place INTEGER, keys BLOB)",
            "CREATE INDEX images_by_row ON images (row)",
            "CREATE TABLE digests (digest TEXT, row INTEGER, PRIMARY KEY (digest, row)) WITHOUT ROWID",
        )
        self._hashes, self._owners, self._is_flat = array("Q"), array("I"), array("b")  # by number of the image

        @lru_cache(maxsize=32)
        def read_features(id_: str, place: int) -> Features:
            return find_features(decode_gray(read_images(id_)[place]))

        self._read_features = read_features

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, id_: str, question: Question) -> None:
        """Adds a row; images that cannot be decoded are left out."""
        row = self._texts.add(id_, question.text)
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (row, text_key(id_), bool(question.images)))
        for place, image in enumerate(map(_decode, question.images)):
            if image is None:
                continue
            keys = b"" if image.is_flat else image.keys.tobytes()
            self._database.execute("INSERT INTO images VALUES (?, ?, ?, ?)", (len(self._hashes), row, place, keys))
            digests = ((digest, row) for digest in image.digests)
            self._database.executemany("INSERT OR IGNORE INTO digests VALUES (?, ?)", digests)
            self._hashes.append(image.hash)
            self._owners.append(row)
            self._is_flat.append(image.is_flat)

    def overlaps(self, question: Question) -> list[Overlap]:
        """Returns the indexed rows that `question` repeats: the words match, and so do images, where one has any."""
        if not question.images:
            found = self._texts.numbered_matches(question.text)
            return _certain_first(
                _without_image(self._id(row), kind, score) for row, kind, score in found if not self._has_images(row)
            )
        images = [image for image in map(_decode, question.images) if image is not None]
        matches: dict[int, ImageMatch] = {}
        for image in images:
            self._match_hashes(image, matches)
        alike = [row for row, _, _ in self._texts.numbered_matches(question.text, limit=MAX_ALIKE)]
        for image in images:
            if not image.is_flat and len(image.keys):
                self._match_crops(image, [row for row in alike if row not in matches][:MAX_ALIKE], matches)
        texts = self._texts.numbered_matches(question.text, among=matches)
        return _certain_first(_with_image(self._id(row), matches[row], kind, score) for row, kind, score in texts)

    def _match_hashes(self, image: _Image, matches: dict[int, ImageMatch]) -> None:
        """Adds the rows with an equal or near image to `matches`."""
        equal = self._database.execute("SELECT row FROM digests WHERE digest IN (?, ?)", image.digests)
        for (row,) in equal.fetchall():
            matches[row] = ImageMatch(self._id(row), "equal", 0, 1.0)
        if image.is_flat or not self._hashes:
            return
        distances = np.bitwise_count(np.frombuffer(self._hashes, np.uint64) ^ np.uint64(image.hash))
        for number in np.flatnonzero((distances <= REVIEW_BITS) & (np.frombuffer(self._is_flat, np.int8) == 0)):
            row, bits = self._owners[number], int(distances[number])
            _keep_stricter(matches, row, ImageMatch(self._id(row), "near" if bits <= STRONG_BITS else "review", bits))

    def _match_crops(self, image: _Image, rows: Sequence[int], matches: dict[int, ImageMatch]) -> None:
        """Adds those of `rows` to `matches` of which an image shows a part of this one, or the reverse."""
        for places, part in in_chunks(rows):
            query = f"SELECT number, row, place, keys FROM images WHERE row IN ({places}) AND keys != x''"
            for number, row, place, data in self._database.execute(query, part).fetchall():
                keys = np.frombuffer(data, np.uint32)
                at = np.minimum(np.searchsorted(keys, image.keys), len(keys) - 1)
                if np.count_nonzero(keys[at] == image.keys) < MIN_VOTES:
                    continue
                correlation = aligned_correlation(image.features, self._read_features(self._id(row), place))
                if correlation >= MIN_CORRELATION:
                    bits = hamming(image.hash, self._hashes[number])
                    _keep_stricter(matches, row, ImageMatch(self._id(row), "crop", bits, round(correlation, 4)))

    def _id(self, row: int) -> str:
        return key_text(self._database.execute("SELECT id FROM rows WHERE number = ?", (row,)).fetchone()[0])

    def _has_images(self, row: int) -> bool:
        return bool(self._database.execute("SELECT has_images FROM rows WHERE number = ?", (row,)).fetchone()[0])


@dataclass(frozen=True)
class _Image:
    """Holds what is compared of an image; `keys` are sorted."""

    digests: tuple[str, str]
    hash: int
    is_flat: bool
    features: Features
    keys: UInt32[np.ndarray, "N"]


@lru_cache(maxsize=8)  # an image is compared with others and then added
def _decode(data: bytes) -> _Image | None:
    try:
        gray = decode_gray(data)
    except OSError:
        return None
    features, is_flat = find_features(gray), contrast(gray) < MIN_CONTRAST
    keys = np.sort(keypoint_keys(features), axis=None)
    return _Image(image_digests(data, gray), perceptual_hash(gray), is_flat, features, keys)


def _keep_stricter(matches: dict[int, ImageMatch], row: int, match: ImageMatch) -> None:
    known = matches.get(row)
    if known is None or _ORDER.index(match.kind) < _ORDER.index(known.kind):
        matches[row] = match


def _with_image(other: str, image: ImageMatch, text_kind: str, score: float) -> Overlap:
    reason = _KINDS[image.kind] + (f" and {text_kind} question" if text_kind else "")
    return Overlap(other, True, reason, round(score, 4), image.bits)


def _without_image(other: str, text_kind: str, score: float) -> Overlap:
    return Overlap(other, True, f"{text_kind} question", round(score, 4))


def _certain_first(overlaps: Iterable[Overlap]) -> list[Overlap]:
    return sorted(overlaps, key=lambda overlap: (not overlap.drop, overlap.other))
