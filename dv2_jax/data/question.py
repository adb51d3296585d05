"""One question that the policy is asked: the unit of every data set, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DataSource = Literal["perception", "reason", "search", "vstar-test"]
DATA_SOURCES: tuple[DataSource, ...] = ("perception", "reason", "search", "vstar-test")
VERIFIERS = ("text", "number", "choice", "math")


@dataclass(frozen=True)
class Question:
    """A question with its pictures and its checked answer.

    Attributes:
        id: unique over a data set.
        skill: what the question exercises; results are reported per skill.
        data_source: which released reward applies (spec 6.3).
        text: the question alone, without the wording of the prompt. It may say where its pictures
            stand with one ``<image>`` each; without any, they come first.
        images: encoded pictures (PNG, JPEG, ...), in the order of ``image_1`` ... ``image_n``.
        answer: the reference answer.
        verifier: how ``rewards.equivalence`` compares a prediction with ``answer``.
        messages: the row's own system and user messages; used byte for byte when given.
        meta: anything else, e.g. ``tolerance`` (number), ``aliases`` (text), ``choices`` (choice);
            ``index``: the key under which released rows are known to the image-search cache.
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
