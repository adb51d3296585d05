"""Defines what the engine returns: finished turns, and counters of its work."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class TurnOutput:
    """One sampled turn. `finish` says whether a stop string, the end-of-turn id or `max_new_tokens` ended it."""

    seq_id: Hashable
    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "eos", "length"]
    version: int  # version of the weights that sampled it


@dataclass
class EngineStats:
    """Counters since the engine was created."""

    prefill_dispatches: int = 0
    decode_dispatches: int = 0
    prefilled_tokens: int = 0
    sampled_tokens: int = 0
    prefill_slots: int = 0  # tokens of all prefill dispatches, padding included
    decode_row_steps: int = 0  # rows times steps of all decode dispatches, padding and ended rows included
    decode_keys: int = 0  # cached keys that these rows and steps attended to, padding included
    decode_keys_needed: int = 0  # those of sampled tokens, each up to the length that its sequence had at the dispatch
    encoded_images: int = 0
    shared_tokens: int = 0  # prompt tokens whose pages another sequence of the group had filled
    preemptions: int = 0  # sequences whose pages were freed for others
    recomputed_tokens: int = 0  # cached tokens that they lost; part of `prefilled_tokens` once they are admitted again

    def since(self, before: EngineStats) -> dict[str, int]:
        """Returns by how much each counter has grown since `before`, which is a copy of earlier counters."""
        return {field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)}
