r"""The rule of MATH-Vision: equality as text, as arithmetic, or as LaTeX that is arithmetic, to 1e-6."""

from __future__ import annotations

import re

from dv2_jax.evaluation.scorers.arithmetic import compute
from dv2_jax.rewards.verdict_pool import shared_pool

TOLERANCE = 1e-6  # absolute
_MAX_CHARS = 300
_BOXED = re.compile(r"\\boxed\{([^}]*)\}")


def expressions_equal(answer: str, reference: str) -> bool | None:
    r"""Returns whether two expressions are equal; None if LaTeX could not be parsed within the time limit.

    Only LaTeX whose value is rational is compared by value: `\frac{1}{2}` equals `0.5`, but `\sqrt{8}` only itself,
    because VLMEvalKit computes with Python's operators alone.
    """
    answer, reference = answer.lower().strip(), reference.lower().strip()
    if answer == reference or _close(compute(answer), compute(reference)):
        return True
    if max(len(answer), len(reference)) > _MAX_CHARS:
        return False
    target = shared_pool().sympy_text(reference)
    if not target or compute(target) is None:
        return None if target is None else False
    parsed = shared_pool().sympy_text(answer)
    return None if parsed is None else _close(compute(parsed), compute(target))


def without_wrapping(answer: str, reference: str) -> tuple[str, str]:
    r"""Returns answer and reference as the released evaluation compares them: no `\(` and `\)`, no `\boxed`.

    `\(` and `\)` are removed from the answer if it has both; `\boxed` only from the reference.
    """
    if r"\(" in answer and r"\)" in answer:
        answer = answer.replace(r"\(", "").replace(r"\)", "")
    boxed = _BOXED.search(reference)
    return answer, boxed[1] if boxed else reference


def _close(first: complex | None, second: complex | None) -> bool:
    if first is None or second is None:
        return False
    try:
        return abs(first - second) < TOLERANCE
    except ArithmeticError:
        return False
