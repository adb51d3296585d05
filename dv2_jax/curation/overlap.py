"""Combines the overlaps of texts and images of two questions into one decision with a reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dv2_jax.curation.image_overlap import ImageMatch, ImageOverlapIndex
from dv2_jax.curation.text_overlap import TemplateSentences, TextMatch, TextOverlapIndex
from dv2_jax.data.question import Question

_KINDS = {
    "equal": "same image",
    "near": "re-encoded or resized image",
    "crop": "crop of the image",
    "review": "similar image",
}


@dataclass(frozen=True)
class Overlap:
    """Two questions that repeat each other. `drop`: without doubt; otherwise the pair is for a person to review."""

    other: str
    drop: bool
    reason: str
    text_score: float = 0.0
    image_bits: int = 64


class OverlapIndex:
    """An index of questions by id. An image that several questions share is indexed once.

    Args:
        templates: sentences that say nothing about a single question.
        image_suffices: a strong match of images is enough to drop a row: so against benchmarks, whose images a model must
            not have seen. Within a set, several questions about one image are usual.
    """

    def __init__(self, templates: TemplateSentences | None = None, *, image_suffices: bool):
        self.image_suffices = image_suffices
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
        return sorted(
            (overlap for overlap in found if overlap.reason), key=lambda overlap: (not overlap.drop, overlap.other)
        )

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

    def _combine(self, other: str, text: TextMatch | None, image: ImageMatch | None, has_images: bool) -> Overlap:
        """Decides on one pair. The same words about another image are another question ("How many dogs are there?")."""
        score = 0.0 if text is None else round(text.score, 4)
        bits = 64 if image is None else image.bits
        if image is not None and (text is not None or (image.is_strong and self.image_suffices)):
            reason = _KINDS[image.kind] + (f" and {text.kind} question" if text is not None else "")
            return Overlap(other, True, reason, score, bits)
        if image is not None:
            return Overlap(other, False, _KINDS[image.kind] if self.image_suffices else "", score, bits)
        drop = text is not None and not has_images
        return Overlap(other, drop, f"{text.kind} question" if text is not None and drop else "", score, bits)
