"""The math rubric of DeepEyesV2, as in `rewards.judge`."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.evaluation.judging.rubric_registry import RubricPrompt, joined_references, rubric
from dv2_jax.rewards.judge import math_messages, parse_equivalence


@rubric("math")
def math_equivalence(question: str, references: Sequence[str], answer: str) -> RubricPrompt:
    """Asks for TRUE or FALSE under a heading. A reply with both or neither is undecided; as released, it is FALSE."""
    return RubricPrompt(math_messages(question, joined_references(references), answer), parse_equivalence)
