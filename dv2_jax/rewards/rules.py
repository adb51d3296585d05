"""The reward of a response: DeepEyesV2's released arithmetic as three registered terms, and any further terms.

The text of a response is everything after the prompt, observations included, as released.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import ConfigError, RewardConfig
from dv2_jax.data.question import DataSource
from dv2_jax.rewards.reward_registry import Response, RewardTerm, get_reward, reward

_FIRST_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class RewardParts:
    """The components of a reward; only `total` is trained on.

    `accuracy` and `format` are 0.0 or 1.0. `penalty` is the fraction of the accuracy term that a search call costs.
    `bonus` and the values of `other_terms` are already weighted.
    """

    accuracy: float
    format: float
    penalty: float
    total: float
    bonus: float = 0.0
    other_terms: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float]:
        parts = asdict(self)
        return parts | parts.pop("other_terms")


def final_answer(text: str) -> str | None:
    """Returns the content of the first `<answer>` after the last `</think>`; None where there is none."""
    found = _FIRST_ANSWER.search(_after_thinking(text))
    return found.group(1).strip() if found else None


def is_too_long(answer: str | None, data_source: DataSource, config: RewardConfig) -> bool:
    """Returns whether an answer is so long that it may sway a lenient judge; the reason split has no limit."""
    return data_source != "reason" and answer is not None and len(answer) >= config.max_answer_chars


def is_well_formed(
    text: str, data_source: DataSource, config: RewardConfig, tools: Sequence[Tool] | None = None
) -> bool:
    """Returns whether tags are balanced and exactly one place holds a non-empty answer.

    The environment's pre-filled `<think>` is part of the text; only the first is written by the policy, and it is
    added where missing. The tags of search tools (`Tool.is_search`) count in the search split only, as released.
    """
    tools = default_tools() if tools is None else tools
    text = text if text.startswith("<think>") else "<think>" + text
    tail = _after_thinking(text)
    answer = final_answer(text)
    tags = {"think", *(tool.tag for tool in tools if data_source == "search" or not tool.is_search)}
    balanced = _balanced(tail, "answer") and all(_balanced(text, tag) for tag in tags)
    return balanced and bool(answer) and not is_too_long(answer, data_source, config)


def score_response(
    text: str,
    is_correct: bool,
    data_source: DataSource,
    config: RewardConfig,
    trajectory: Trajectory | None = None,
) -> RewardParts:
    """Returns the reward of one response: the weighted sum of `config.terms`.

    With the default terms and weights, as released: perception and reason `0.8 A + 0.2 F`; search
    `0.8 A (1 - p) + 0.2 F` with p = 0.1 once there is any tool call; vstar-test (validation) `A` alone.

    Args:
        text: everything after the prompt, decoded.
        is_correct: the verdict on `final_answer(text)`.
    """
    answer = final_answer(text)
    is_correct = is_correct and not is_too_long(answer, data_source, config)
    if data_source == "reason" and not answer:
        is_correct = False
    response = Response(text, answer, is_correct, data_source, trajectory)
    total, weighted = 0.0, {}
    for name, weight in term_weights(config, data_source).items():
        value = float(get_reward(name)(response, config))
        if not math.isfinite(value):
            raise ValueError(f"reward term {name!r} returned {value}")
        weighted[name] = weight * value
        total += weighted[name]
    others = {name: value for name, value in weighted.items() if name not in _RELEASED_WEIGHTS}
    return RewardParts(
        accuracy=float(is_correct),
        format=float(is_well_formed(text, data_source, config, response.tools)),
        penalty=search_penalty(response, config),
        total=total,
        bonus=weighted.get("tool_bonus", 0.0),
        other_terms=others,
    )


def term_weights(config: RewardConfig, data_source: DataSource = "perception") -> dict[str, float]:
    """Returns the weight of each term: `NAME=WEIGHT` in `config.terms`, else the field of a released term, else 1.

    Raises:
        ConfigError: a weight is no number, or a term is unknown or given twice.
    """
    if data_source == "vstar-test":  # validation rows report accuracy
        return {"accuracy": 1.0}
    weights: dict[str, float] = {}
    for entry in config.terms:
        name, equals, written = entry.partition("=")
        if name in weights:
            raise ConfigError(f"reward.terms: {name!r} is given twice")
        try:
            weights[name] = float(written) if equals else getattr(config, _RELEASED_WEIGHTS.get(name, ""), 1.0)
        except ValueError:
            raise ConfigError(f"reward.terms: the weight in {entry!r} is no number; write NAME=WEIGHT") from None
    return weights


def check_terms(config: RewardConfig) -> dict[str, RewardTerm]:
    """Returns the functions of all configured terms.

    Raises:
        ConfigError: as `term_weights` and `get_reward`.
    """
    return {name: get_reward(name) for name in term_weights(config)}


_RELEASED_WEIGHTS = {"accuracy": "accuracy_weight", "format": "format_weight", "tool_bonus": "tool_bonus"}


@reward("accuracy")
def accuracy(response: Response, config: RewardConfig) -> float:
    """1 for a correct answer, less the search penalty."""
    return float(response.is_correct) * (1 - search_penalty(response, config))


@reward("format")
def format_reward(response: Response, config: RewardConfig) -> float:
    """1 for balanced tags and one non-empty answer."""
    return float(is_well_formed(response.text, response.data_source, config, response.tools))


@reward("tool_bonus")
def tool_bonus(response: Response, config: RewardConfig) -> float:
    """1 for a correct answer after any tool call; its weight is 0 by default."""
    return float(response.is_correct) * float(any(tool.is_called_in(response.text) for tool in response.tools))


def search_penalty(response: Response, config: RewardConfig) -> float:
    """Returns the fraction of accuracy that is lost: in the search split, once for any number of tool calls."""
    searched = response.data_source == "search" and any(
        tool.is_called_in(response.text) for tool in response.tools if tool.is_search
    )
    return config.search_penalty if searched else 0.0


def _after_thinking(text: str) -> str:
    return text.rsplit("</think>", 1)[-1].strip()


def _balanced(text: str, tag: str) -> bool:
    return text.count(f"<{tag}>") == text.count(f"</{tag}>")
