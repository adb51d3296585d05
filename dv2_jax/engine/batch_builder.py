"""Builds the input arrays of a dispatch from sequences and appends its outputs to them, in numpy on the host.

Rows are ordered by data-parallel shard, so that a row is computed on the devices that hold the pages of its sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dv2_jax.engine.buckets import Shape
from dv2_jax.engine.image_cache import ImageEmbeddingCache
from dv2_jax.engine.kv_cache_manager import KVCacheManager
from dv2_jax.engine.model_runner import DecodeBatch, DecodeOutput, PrefillBatch
from dv2_jax.engine.sequence_state import SequenceState

PrefillChunk = tuple[SequenceState, int]  # a sequence and how many of its next tokens are prefilled


def select_per_shard(sequences: Iterable[SequenceState], num_shards: int, rows: int) -> list[SequenceState]:
    """Returns the first sequences that fit into `rows` rows, each shard taking at most `rows // num_shards`."""
    taken = [0] * num_shards
    chosen = []
    for sequence in sequences:
        if taken[sequence.shard] < rows // num_shards:
            taken[sequence.shard] += 1
            chosen.append(sequence)
    return chosen


def row_indices(sequences: Iterable[SequenceState], num_shards: int, rows: int) -> list[int]:
    """Returns the row index of each sequence."""
    next_row = [shard * (rows // num_shards) for shard in range(num_shards)]
    indices = []
    for sequence in sequences:
        indices.append(next_row[sequence.shard])
        next_row[sequence.shard] += 1
    return indices


def empty_prefill_batch(rows: int, tokens: int, width: int, pad_slot: int) -> PrefillBatch:
    """Returns a batch of padding rows; their keys and values are written to `pad_slot`, which is dropped."""
    return PrefillBatch(
        token_ids=np.zeros((rows, tokens), np.int32),
        positions=np.zeros((3, rows, tokens), np.int32),
        image_index=np.full((rows, tokens), -1, np.int32),
        slots=np.full((rows, tokens), pad_slot, np.int32),
        page_table=np.zeros((rows, width), np.int32),
        cached=np.zeros(rows, np.int32),
    )


def build_prefill_batch(
    chunks: Sequence[PrefillChunk],
    shape: Shape,
    managers: Sequence[KVCacheManager],
    image_cache: ImageEmbeddingCache,
) -> PrefillBatch:
    """Builds the prefill batch of `chunks`.

    Pages and image embeddings have been allocated.

    Args:
        shape: (rows, tokens, page-table width).
    """
    rows, tokens, width = shape
    out = empty_prefill_batch(rows, tokens, width, managers[0].pad_slot)
    indices = row_indices((sequence for sequence, _ in chunks), len(managers), rows)
    for row, (sequence, count) in zip(indices, chunks, strict=True):
        manager = managers[sequence.shard]
        start, end = sequence.cached, sequence.cached + count
        out.token_ids[row, :count] = sequence.token_ids[start:end]
        out.positions[:, row, :count] = sequence.positions[:, start:end]
        out.slots[row, :count] = manager.slots(sequence, start, end)
        out.page_table[row] = manager.page_table_row(sequence, width)
        out.cached[row] = start
        for first, image in sequence.images_between(start, end):
            low, high = max(first, start), min(first + image.tokens, end)
            out.image_index[row, low - start : high - start] = image_cache.rows_of(image.digest)[
                low - first : high - first
            ]
    return out


def empty_decode_batch(rows: int, steps: int, width: int, pad_slot: int) -> DecodeBatch:
    """Returns a batch of rows that sample nothing."""
    return DecodeBatch(
        token=np.zeros(rows, np.int32),
        position=np.zeros(rows, np.int32),
        index=np.zeros(rows, np.int32),
        key=np.zeros(rows, np.uint32),
        temperature=np.ones(rows, np.float32),
        state=np.zeros(rows, np.int32),
        budget=np.zeros(rows, np.int32),
        slots=np.full((rows, steps), pad_slot, np.int32),
        page_table=np.zeros((rows, width), np.int32),
        cached=np.zeros(rows, np.int32),
    )


def build_decode_batch(
    sequences: Sequence[SequenceState], shape: Shape, managers: Sequence[KVCacheManager]
) -> DecodeBatch:
    """Builds the decode batch, one row per sequence, and allocates the pages that its steps may fill.

    Args:
        shape: (rows, steps, page-table width).
    """
    rows, steps, width = shape
    out = empty_decode_batch(rows, steps, width, managers[0].pad_slot)
    for row, sequence in zip(row_indices(sequences, len(managers), rows), sequences, strict=True):
        manager = managers[sequence.shard]
        generation, cached = sequence.generation, sequence.cached
        assert generation is not None  # the sequence is ready
        budget = sequence.budget
        end = cached + min(steps, budget)
        manager.allocate_pages(sequence, end)
        out.token[row] = sequence.token_ids[-1]
        out.position[row] = sequence.positions[0, -1]
        out.index[row] = len(sequence.token_ids)
        out.key[row] = sequence.key
        out.temperature[row] = generation.temperature
        out.state[row] = generation.state
        out.budget[row] = budget
        out.slots[row, : end - cached] = manager.slots(sequence, cached, end)
        out.page_table[row] = manager.page_table_row(sequence, width)
        out.cached[row] = cached
    return out


def append_sampled(sequences: Sequence[SequenceState], num_shards: int, decoded: DecodeOutput) -> None:
    """Appends the sampled tokens and log-probs of a decode dispatch to its sequences; blocks until it is done."""
    tokens, logprobs = np.asarray(decoded.tokens), np.asarray(decoded.logprobs)
    counts, states = np.asarray(decoded.count), np.asarray(decoded.state)
    for row, sequence in zip(row_indices(sequences, num_shards, len(tokens)), sequences, strict=True):
        count = int(counts[row])
        sampled = tokens[row, :count].tolist()
        generation = sequence.generation
        assert generation is not None  # the dispatch sampled it
        generation.state = int(states[row])
        generation.token_ids.extend(sampled)
        generation.logprobs.extend(logprobs[row, :count].tolist())
        sequence.extend_text(sampled)
        sequence.cached += count
