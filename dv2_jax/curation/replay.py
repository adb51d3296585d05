"""Replays stored turns through the rollout's own scheduler, so that every call is executed again by the real tools."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import EngineConfig
from dv2_jax.engine.engine import EngineStats, TurnOutput
from dv2_jax.rollout.scheduler import AttemptId


class ReplayEngine:
    """Implements the engine methods that the scheduler uses; each generation is the next stored turn of its row."""

    def __init__(self, prompt_encoder: PromptEncoder, turns: Mapping[str, Sequence[str]]):
        """Args: turns: texts of the stored turns, by trajectory id."""
        self.prompt_encoder = prompt_encoder
        self.turns = dict(turns)
        self.config = EngineConfig()
        self.stats = EngineStats()
        self.waiting = 0
        self._next: dict[AttemptId, int] = {}
        self._ready: deque[TurnOutput] = deque()

    def add_sequence(self, seq_id: AttemptId, key: int) -> None:
        """Starts a row at its first turn."""
        self._next[seq_id] = 0

    def append(self, seq_id: AttemptId, token_ids: Sequence[int], images: Sequence = ()) -> None:
        """Accepts a prompt or an observation, which a replay does not read."""

    def request_turn(self, seq_id: AttemptId, max_new_tokens: int, temperature: float) -> None:
        """Queues the next stored turn; a row that is asked for more turns than it has ends with an empty one."""
        texts = self.turns[seq_id.trajectory_id]
        number = self._next[seq_id]
        self._next[seq_id] += 1
        text = texts[number] if number < len(texts) else ""
        ids = self.prompt_encoder.tokenizer.encode(text)
        stops = text.endswith(self.prompt_encoder.chat.stop_strings)
        if not stops:
            ids.append(self.prompt_encoder.im_end)
        finish = "stop" if stops else "eos"
        if len(ids) > max_new_tokens:
            ids, finish = ids[:max_new_tokens], "length"
        self._ready.append(TurnOutput(seq_id, ids, [0.0] * len(ids), finish, -1))

    def step(self) -> list[TurnOutput]:
        """Returns the queued turns."""
        turns = list(self._ready)
        self._ready.clear()
        return turns

    @property
    def idle(self) -> bool:
        return not self._ready

    def free_sequence(self, seq_id: AttemptId) -> None:
        """Ends a row."""
        self._next.pop(seq_id, None)
