"""The released reward arithmetic (spec 6.3), over the text of a whole response, observations included."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from dv2_jax.config import RewardConfig
from dv2_jax.data.question import DataSource

_FIRST_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class RewardParts:
    """What a reward is made of; ``total`` is the only number that trains.

    ``accuracy`` and ``format`` are 0.0 or 1.0. ``penalty`` is the fraction of the accuracy term that a search
    call costs. ``bonus`` is already weighted.
    """

    accuracy: float
    format: float
    penalty: float
    total: float
    bonus: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def final_answer(text: str) -> str | None:
    """What the response answers: the first ``<answer>`` after the last ``</think>``; None where there is none."""
    found = _FIRST_ANSWER.search(_after_thinking(text))
    return found.group(1).strip() if found else None


def too_long(answer: str | None, data_source: DataSource, config: RewardConfig) -> bool:
    """Whether an answer is long enough to be a bid for a lenient judge; the reason split may write at length."""
    return data_source != "reason" and answer is not None and len(answer) >= config.max_answer_chars


def well_formed(text: str, data_source: DataSource, config: RewardConfig) -> bool:
    """Balanced tags and one place for a non-empty answer.

    The environment's pre-filled ``<think>`` is part of the text; only the first is the policy's own, and it is
    granted where missing.
    """
    text = text if text.startswith("<think>") else "<think>" + text
    tail = _after_thinking(text)
    answer = final_answer(text)
    balanced = _balanced(text, "think") and _balanced(text, "code") and _balanced(tail, "answer")
    if data_source == "search":
        balanced = balanced and _balanced(text, "tool_call")
    return balanced and bool(answer) and not too_long(answer, data_source, config)


def score(trajectory_text: str, answer_ok: bool, data_source: DataSource, config: RewardConfig) -> RewardParts:
    """The reward of one response.

    Args:
        trajectory_text: everything after the prompt, decoded.
        answer_ok: the verdict of the rules or the judge on `final_answer`.
        data_source: perception and reason: ``0.8 A + 0.2 F``; search: ``0.8 A (1 - p) + 0.2 F`` with p = 0.1 once
            there is any tool call; vstar-test: ``A``. The weights are ``config``'s.
    """
    answer = final_answer(trajectory_text)
    right = answer_ok and not too_long(answer, data_source, config) and not (data_source == "reason" and not answer)
    accuracy, form = float(right), float(well_formed(trajectory_text, data_source, config))
    searched = "<tool_call>" in trajectory_text
    penalty = config.search_penalty if data_source == "search" and searched else 0.0
    bonus = config.tool_bonus * accuracy * float(searched or "<code>" in trajectory_text)
    if data_source == "vstar-test":
        return RewardParts(accuracy, form, 0.0, accuracy)
    total = config.accuracy_weight * accuracy * (1 - penalty) + config.format_weight * form + bonus
    return RewardParts(accuracy, form, penalty, total, bonus)


def _after_thinking(text: str) -> str:
    return text.rsplit("</think>", 1)[-1].strip()


def _balanced(text: str, tag: str) -> bool:
    return text.count(f"<{tag}>") == text.count(f"</{tag}>")
