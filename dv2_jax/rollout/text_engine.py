"""An engine whose turns are texts from elsewhere, such as a script or a file, for rollouts that sample nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Literal

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import EngineConfig
from dv2_jax.engine.engine_outputs import EngineStats, TurnOutput
from dv2_jax.rollout.scheduler import AttemptId


class TextEngine(ABC):
    """Implements the engine methods that `RolloutScheduler` uses; a subclass gives the text of each turn."""

    def __init__(self, prompt_encoder: PromptEncoder):
        self.prompt_encoder = prompt_encoder
        self.config = EngineConfig()
        self.stats = EngineStats()
        self.waiting = 0
        self._ready: deque[TurnOutput] = deque()

    @abstractmethod
    def add_sequence(self, seq_id: AttemptId, key: int) -> None:
        """Starts a trajectory; `key` seeds what it draws."""

    @abstractmethod
    def next_text(self, seq_id: AttemptId) -> str:
        """Returns the text of the next turn of a trajectory."""

    @abstractmethod
    def free_sequence(self, seq_id: AttemptId) -> None:
        """Ends a trajectory."""

    def append(self, seq_id: AttemptId, token_ids: Sequence[int], images: Sequence = ()) -> None:  # noqa: B027 - nothing to do
        """Accepts a prompt or an observation, whose ids are not read."""

    def request_turn(self, seq_id: AttemptId, max_new_tokens: int, temperature: float) -> None:
        """Queues the next turn, ended as the policy would end it, or cut after `max_new_tokens` ids."""
        text = self.next_text(seq_id)
        ids = self.prompt_encoder.tokenizer.encode(text)
        stops = text.endswith(self.prompt_encoder.chat.stop_strings)
        if not stops:
            ids.append(self.prompt_encoder.im_end)
        finish: Literal["stop", "eos", "length"] = "stop" if stops else "eos"
        if len(ids) > max_new_tokens:
            ids, finish = ids[:max_new_tokens], "length"
        self.stats.sampled_tokens += len(ids)
        self._ready.append(TurnOutput(seq_id, ids, [0.0] * len(ids), finish, -1))

    def step(self) -> list[TurnOutput]:
        """Returns the queued turns."""
        turns = list(self._ready)
        self._ready.clear()
        return turns

    @property
    def idle(self) -> bool:
        """True if no turn is queued."""
        return not self._ready
