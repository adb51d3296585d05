"""Defines a question: one item of a dataset, independent of the file format it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DataSource = Literal["perception", "reason", "search", "vstar-test"]
DATA_SOURCES: tuple[DataSource, ...] = ("perception", "reason", "search", "vstar-test")
VERIFIERS = ("text", "number", "choice", "math")


@dataclass(frozen=True)
class Question:
    """A question with its images and its reference answer.

    Attributes:
        id: unique within a dataset.
        skill: the capability that the question tests; results are reported per skill.
        data_source: selects the reward function, as in the released code.
        text: the question alone, without the wording of the prompt. It may mark the positions of its images
            with one `<image>` each; without markers, the images precede the text.
        images: encoded images (PNG, JPEG, ...), in the order of `image_1` ... `image_n`.
        answer: the reference answer.
        verifier: the rule in `rewards.matching` that compares a prediction with `answer`.
        messages: the row's own system and user messages; used unchanged if given.
        meta: other fields, e.g. `tolerance` (number), `aliases` (text), `choices` (choice);
            `index`: the key of a released row in the image-search cache.
    """

    id: str
    skill: str
    data_source: DataSource
    text: str
    images: tuple[bytes, ...]
    answer: str
    verifier: str = "text"
    messages: tuple[dict, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data_source not in DATA_SOURCES:
            raise ValueError(f"question {self.id!r}: data_source {self.data_source!r} is none of {DATA_SOURCES}")
        if self.verifier not in VERIFIERS:
            raise ValueError(f"question {self.id!r}: verifier {self.verifier!r} is none of {VERIFIERS}")
