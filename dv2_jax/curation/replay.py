"""Replays stored turns through the rollout's own scheduler, so that every call is executed again by the real tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.rollout.scheduler import AttemptId
from dv2_jax.rollout.text_engine import TextEngine


class ReplayEngine(TextEngine):
    """Generates the stored turns of each row, and an empty turn where the scheduler requests more.

    Args:
        turns: texts of the stored turns, by trajectory id.
    """

    def __init__(self, prompt_encoder: PromptEncoder, turns: Mapping[str, Sequence[str]]):
        super().__init__(prompt_encoder)
        self.turns = dict(turns)
        self._next: dict[AttemptId, int] = {}

    def add_sequence(self, seq_id: AttemptId, key: int) -> None:
        self._next[seq_id] = 0

    def next_text(self, seq_id: AttemptId) -> str:
        texts, number = self.turns[seq_id.trajectory_id], self._next[seq_id]
        self._next[seq_id] += 1
        return texts[number] if number < len(texts) else ""

    def free_sequence(self, seq_id: AttemptId) -> None:
        self._next.pop(seq_id, None)
