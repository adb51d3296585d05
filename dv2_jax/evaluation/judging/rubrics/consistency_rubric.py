"""The consistency rubric of DeepEyesV2, as in `rewards.judge`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dv2_jax.evaluation.judging.rubric_registry import RubricPrompt, joined_references, rubric
from dv2_jax.rewards.judge import consistency_messages, consistency_verdict


@rubric("consistency")
def consistency(question: str, references: Sequence[str], answer: str) -> RubricPrompt:
    """Asks for `\\boxed{Yes}` or `\\boxed{No}` after a short comparison."""
    messages = consistency_messages(question, joined_references(references), answer)
    return RubricPrompt(messages, read_consistency, {"max_tokens": 8192})


def read_consistency(reply: str) -> bool | None:
    """Returns the verdict in the place where the released rule looks for Yes; None where it holds both or neither.

    The released rule counts everything but Yes as No.
    """
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", consistency_verdict(reply))} & {"yes", "no"}
    return "yes" in words if len(words) == 1 else None
