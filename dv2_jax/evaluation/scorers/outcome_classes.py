"""The four outcome classes of WeMath: a problem of several steps, compared with its steps asked one by one.

Score = (mastered + half of the inadequately generalized) / problems, as in arXiv 2407.01284. VLMEvalKit computes
(525 - losses) / 525, so that each problem that is missing counts as mastered; here the problems that were scored count.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class OutcomeClass(Enum):
    """The outcome of one problem."""

    MASTERED = "complete mastery"
    INADEQUATE = "inadequate generalization"  # all steps right, the problem wrong
    ROTE = "rote memorization"  # the problem right, steps wrong
    INSUFFICIENT = "insufficient knowledge"


def classify(steps: Sequence[bool], problem: bool, is_loose: bool) -> OutcomeClass:
    """Returns the class of a problem.

    Args:
        steps: which of the single steps were right.
        problem: the question of several steps was right.
        is_loose: rote memorization only if all steps are wrong; strict: if any is.
    """
    if not problem:
        return OutcomeClass.INADEQUATE if all(steps) else OutcomeClass.INSUFFICIENT
    mastered = any(steps) if is_loose else all(steps)
    return OutcomeClass.MASTERED if mastered else OutcomeClass.ROTE


def credit(outcome: OutcomeClass) -> float:
    """Returns what a problem adds to the score."""
    return {OutcomeClass.MASTERED: 1.0, OutcomeClass.INADEQUATE: 0.5}.get(outcome, 0.0)
