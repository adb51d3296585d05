"""Chooses the sequences whose KV pages are freed when no page is free for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from dv2_jax.config import EngineConfig
from dv2_jax.engine.engine_outputs import EngineStats
from dv2_jax.engine.kv_cache_manager import KVCacheManager
from dv2_jax.engine.sequence_state import SequenceState


def page_watermark(config: EngineConfig, num_shards: int) -> int | None:
    """Returns the pages of a shard that an admission leaves free, or None if maximum lengths are reserved.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= config.page_watermark < 1:
        raise ValueError(f"engine.page_watermark is {config.page_watermark}; it must be at least 0 and below 1")
    if config.page_allocation == "reserved":
        return None
    return math.ceil(config.page_watermark * (config.pages // num_shards))


class Preemption:
    """Preempts sequences: parked ones first, then the youngest. Does nothing where maximum lengths are reserved.

    Args:
        managers: of each shard.
        sequences: the open sequences of the engine by id, which the engine changes.
        stats: the counters of the engine.
    """

    def __init__(
        self,
        managers: Sequence[KVCacheManager],
        sequences: Mapping[Hashable, SequenceState],
        stats: EngineStats,
    ):
        self._managers, self._sequences, self._stats = managers, sequences, stats

    def admit_instead_of_parked(self) -> None:
        """Preempts parked sequences while all admitted ones of a shard are parked and others wait for pages.

        Those that wait may be what the callers of the parked ones wait for.
        """
        for shard, manager in enumerate(self._managers):
            while manager.watermark is not None and manager.waits_for_pages:
                admitted = [s for s in self._sequences.values() if s.admitted and s.shard == shard]
                if not admitted or not all(s.parked for s in admitted):
                    break
                self._preempt(max(admitted, key=lambda s: s.arrival))
                manager.admit()

    def with_room(self, sequences: list[SequenceState], tokens: Callable[[SequenceState], int]) -> list[SequenceState]:
        """Allocates pages for the first `tokens` tokens of each sequence; returns those for which there are any.

        Older sequences come first; for them others are preempted.
        """
        if self._managers[0].watermark is None:
            return sequences
        with_room = set()
        for sequence in sorted(sequences, key=lambda s: s.arrival):
            manager, end = self._managers[sequence.shard], tokens(sequence)
            while sequence.admitted and not manager.has_room(sequence, end):
                victim = self._victim(sequence)
                if victim is None:
                    break
                self._preempt(victim)
            if sequence.admitted and manager.has_room(sequence, end):
                manager.allocate_pages(sequence, end)
                with_room.add(sequence)
        return [sequence for sequence in sequences if sequence in with_room]

    def _victim(self, sequence: SequenceState) -> SequenceState | None:
        """Returns the sequence to preempt for `sequence`: a parked one, or else a younger one, the youngest first."""
        found = [
            other
            for other in self._sequences.values()
            if other.admitted and other.shard == sequence.shard and other is not sequence
            if other.parked or other.arrival > sequence.arrival
        ]
        return max(found, key=lambda other: (other.parked, other.arrival), default=None)

    def _preempt(self, sequence: SequenceState) -> None:
        self._stats.preemptions += 1
        self._stats.recomputed_tokens += sequence.cached
        self._managers[sequence.shard].preempt(sequence)
