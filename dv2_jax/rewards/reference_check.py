"""Checks at the start of a run that a question's verifier can use its reference answer."""

from __future__ import annotations

from dv2_jax.data.faults import Issue, clip, clip_text
from dv2_jax.data.question import Question
from dv2_jax.rewards.choice_matching import names_an_option
from dv2_jax.rewards.matching import answers_match

_FIXES = {
    "number": "write the number, or choose the verifier text",
    "choice": "write a label or the wording of one of `choices`",
}


def reference_issue(question: Question) -> Issue | None:
    """Returns what is wrong if the verifier does not accept the reference itself as an answer, else None.

    References in mathematics are not tried: comparing them takes another process, and equal text is always accepted.
    """
    if question.verifier == "math":
        return None
    fix = _FIXES.get(question.verifier, "write the answer in words")
    try:
        if question.verifier == "choice" and not names_an_option(question.answer, question.meta):
            problem = f"{clip(question.answer)} names none of the choices {clip_text(str(question.meta['choices']))}"
            return Issue("reference", "reward_model.ground_truth", problem, fix)
        if answers_match(question.answer, question.answer, question.verifier, question.meta):
            return None
        problem = f"the verifier {question.verifier!r} rejects the reference {clip(question.answer)} itself"
    except ValueError as error:
        problem = clip_text(str(error))
    return Issue("reference", "reward_model.ground_truth", problem, fix)
