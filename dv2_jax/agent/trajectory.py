"""Defines a trajectory: one list of token ids and the per-token and per-turn data that belong to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.data.question import Question
from tools_service.common.status import Status

if TYPE_CHECKING:
    from dv2_jax.data.tokenizer import Tokenizer

__all__ = ["Finish", "ImageInput", "Trajectory", "TurnRecord"]


class Finish(enum.Enum):
    """The reason for which a trajectory ended."""

    ANSWER = "answer"  # a non-empty <answer>
    MAX_TURNS = "max_turns"  # the last permitted generation did not answer
    MAX_TOKENS = "max_tokens"  # no room for another token, or for the next observation
    TURN_LIMIT = "turn_limit"  # a turn reached its own token limit, or was empty
    LOST = "lost"  # the infrastructure failed; masked from the loss


@dataclass(frozen=True)
class TurnRecord:
    """One generation and its observation. `text` lacks the `<think>` that the environment pre-filled."""

    text: str
    kind: str  # ParsedTurn.kind: the name of a tool, answer, malformed or none
    observation: str | None = None  # None: nothing was appended after this turn
    images: tuple[bytes, ...] = ()
    status: Status | None = None  # None: no tool was called, or the call was not executed
    wall_ms: float = 0.0  # wall-clock time of the tool call, in milliseconds


@dataclass
class Trajectory:
    """Token ids from the prompt to the last token, with their aligned data.

    `token_ids`, `loss_mask`, `logprobs` and `versions` have the same length T. `loss_mask` is 1 exactly on sampled
    tokens. There, `logprobs` holds the behavior log-prob (natural log, at the sampling temperature) and `versions`
    the policy version that sampled the token; elsewhere they are 0.0 and -1. `images` are in the order of their
    placeholders.
    """

    id: str
    question: Question
    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    images: list[ImageInput] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    finish: Finish | None = None  # None: still running
    dropped: bool = False  # infrastructure failure or unusable row: masked from the loss
    row_error: str = ""  # the reason if the question's row cannot be used
    prompt_tokens: int = 0  # length of the prompt at the head of token_ids
    reward: float | None = None
    reward_parts: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = field(default_factory=default_tools)  # that the policy could call

    @property
    def response_ids(self) -> list[int]:
        return self.token_ids[self.prompt_tokens :]

    def response_text(self, tokenizer: Tokenizer) -> str:
        """Decodes everything after the prompt, observations included: the input of the rule-based rewards."""
        return tokenizer.decode(self.response_ids)

    @property
    def sampled_tokens(self) -> int:
        return sum(self.loss_mask)

    @property
    def tool_calls(self) -> int:
        """Counts the turns whose tool was executed, successfully or not."""
        return sum(turn.status is not None for turn in self.turns)

    def used_categories(self) -> dict[str, bool]:
        """Returns for each category of the tools (`Tool.category`) whether one of them was executed."""
        executed = {turn.kind for turn in self.turns if turn.status is not None}
        used = {tool.category: False for tool in self.tools}
        return used | {tool.category: True for tool in self.tools if tool.name in executed}
