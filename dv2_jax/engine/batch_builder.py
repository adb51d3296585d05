"""Sequences to the arrays of a dispatch, and back. All of it is numpy on the host.

Rows stand group by group: those of one group lie on the same devices as the pages of their sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as List

import numpy as np

from dv2_jax.engine.buckets import pages_of
from dv2_jax.engine.image_cache import PicturePool
from dv2_jax.engine.kv_cache_manager import Memory
from dv2_jax.engine.model_runner import Decoded, DecodeRows, PrefillRows
from dv2_jax.engine.sequence_state import Sequence

Piece = tuple[Sequence, int]  # a sequence and how many of its next tokens are prefilled


def share(sequences: Iterable[Sequence], groups: int, rows: int) -> list[Sequence]:
    """The first sequences that ``rows`` rows, split evenly over the groups, have room for."""
    taken = [0] * groups
    chosen = []
    for sequence in sequences:
        if taken[sequence.group] < rows // groups:
            taken[sequence.group] += 1
            chosen.append(sequence)
    return chosen


def rows_needed(sequences: Iterable[Sequence], groups: int) -> int:
    """Rows that hold these sequences, split evenly over the groups."""
    return groups * max(Counter(sequence.group for sequence in sequences).values())


def places(sequences: Iterable[Sequence], groups: int, rows: int) -> list[int]:
    """The row of each sequence."""
    taken = [group * (rows // groups) for group in range(groups)]
    found = []
    for sequence in sequences:
        found.append(taken[sequence.group])
        taken[sequence.group] += 1
    return found


def empty_prefill(rows: int, tokens: int, width: int, nowhere: int) -> PrefillRows:
    """Rows that compute padding and write nowhere."""
    return PrefillRows(
        token_ids=np.zeros((rows, tokens), np.int32),
        positions=np.zeros((3, rows, tokens), np.int32),
        image_index=np.full((rows, tokens), -1, np.int32),
        slots=np.full((rows, tokens), nowhere, np.int32),
        page_table=np.zeros((rows, width), np.int32),
        cached=np.zeros(rows, np.int32),
    )


def prefill_rows(
    pieces: List[Piece], shape: tuple[int, int, int], memories: List[Memory], pool: PicturePool
) -> PrefillRows:
    """The next tokens of each sequence, as (rows, tokens, page-table width); pages and pictures are there."""
    rows, tokens, width = shape
    out = empty_prefill(rows, tokens, width, memories[0].nowhere)
    where = places((sequence for sequence, _ in pieces), len(memories), rows)
    for row, (sequence, count) in zip(where, pieces, strict=True):
        memory = memories[sequence.group]
        start, end = sequence.cached, sequence.cached + count
        out.token_ids[row, :count] = sequence.token_ids[start:end]
        out.positions[:, row, :count] = sequence.positions[:, start:end]
        out.slots[row, :count] = memory.slots(sequence, start, end)
        out.page_table[row] = memory.page_row(sequence, width)
        out.cached[row] = start
        for first, picture in sequence.pictures_between(start, end):
            low, high = max(first, start), min(first + picture.tokens, end)
            out.image_index[row, low - start : high - start] = pool.rows_of(picture.digest)[low - first : high - first]
    return out


def empty_decode(rows: int, steps: int, width: int, nowhere: int) -> DecodeRows:
    """Rows without a budget."""
    return DecodeRows(
        token=np.zeros(rows, np.int32),
        position=np.zeros(rows, np.int32),
        index=np.zeros(rows, np.int32),
        key=np.zeros(rows, np.uint32),
        temperature=np.ones(rows, np.float32),
        state=np.zeros(rows, np.int32),
        budget=np.zeros(rows, np.int32),
        slots=np.full((rows, steps), nowhere, np.int32),
        page_table=np.zeros((rows, width), np.int32),
        cached=np.zeros(rows, np.int32),
    )


def decode_rows(sequences: List[Sequence], shape: tuple[int, int, int], memories: List[Memory]) -> DecodeRows:
    """One row per sequence, as (rows, steps, page-table width); takes the pages that the steps may fill."""
    rows, steps, width = shape
    out = empty_decode(rows, steps, width, memories[0].nowhere)
    for row, sequence in zip(places(sequences, len(memories), rows), sequences, strict=True):
        memory = memories[sequence.group]
        generation, cached = sequence.generation, sequence.cached
        budget = generation.max_new_tokens - len(generation.token_ids)
        end = cached + min(steps, budget)
        memory.grow(sequence, end)
        out.token[row] = sequence.token_ids[-1]
        out.position[row] = sequence.positions[0, -1]
        out.index[row] = len(sequence.token_ids)
        out.key[row] = sequence.key
        out.temperature[row] = generation.temperature
        out.state[row] = generation.state
        out.budget[row] = budget
        out.slots[row, : end - cached] = memory.slots(sequence, cached, end)
        out.page_table[row] = memory.page_row(sequence, width)
        out.cached[row] = cached
    return out


def absorb(sequences: List[Sequence], groups: int, decoded: Decoded) -> None:
    """Appends what a decode dispatch sampled. Blocks until it is done."""
    tokens, logprobs = np.asarray(decoded.tokens), np.asarray(decoded.logprobs)
    counts, states = np.asarray(decoded.count), np.asarray(decoded.state)
    for row, sequence in zip(places(sequences, groups, len(tokens)), sequences, strict=True):
        count = int(counts[row])
        sampled = tokens[row, :count].tolist()
        sequence.generation.state = int(states[row])
        sequence.generation.token_ids.extend(sampled)
        sequence.generation.logprobs.extend(logprobs[row, :count].tolist())
        sequence.extend_text(sampled)
        sequence.cached += count


def width_for(widths: List[int], sequences: List[Sequence], page_size: int) -> int:
    """The narrowest listed page table that reaches all cached tokens of these sequences."""
    needed = pages_of(max(sequence.cached for sequence in sequences), page_size)
    return next(width for width in widths if width >= needed)
