"""Decisions on rows: derived from stored labels whenever they are needed, so that thresholds can change without samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Destination = Literal["rl", "cold_start", "dropped", "waiting"]
RL: Destination = "rl"
COLD_START: Destination = "cold_start"
DROPPED: Destination = "dropped"
WAITING: Destination = "waiting"  # a stage has not labeled the row yet


@dataclass(frozen=True, slots=True)
class Decision:
    """The set that a row goes to, or that it is dropped or waits. `stage` is the one that dropped it or that it waits for."""

    destination: Destination
    stage: str = ""
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """True for a row that further stages may label."""
        return self.destination in (RL, COLD_START)


@dataclass(frozen=True)
class Solved:
    """Results of the samples of one question: `correct` of `n` with a verdict; `failed` have none."""

    correct: int
    n: int
    failed: int

    @classmethod
    def count(cls, samples: Sequence[Mapping[str, Any]]) -> Solved:
        """Counts the entries of a sampling stage."""
        verdicts = [bool(sample["correct"]) for sample in samples if not sample["failure"]]
        return cls(sum(verdicts), len(verdicts), len(samples) - len(verdicts))

    @property
    def rate(self) -> float:
        """The fraction of correct answers; 0 without any."""
        return self.correct / self.n if self.n else 0.0
