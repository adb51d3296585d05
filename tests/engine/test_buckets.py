"""Shapes of dispatches and the grouping of sequences.

Catches: a batch that no shape holds, a shape that is compiled although a similar one exists, a sequence in no group or in
two, a group that its shape does not hold, short rows that are padded to a long one at a higher cost.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dv2_jax.config import EngineConfig
from dv2_jax.engine.buckets import Buckets, StepCost, num_pages
from dv2_jax.engine.sequence_state import SequenceState
from dv2_jax.model.model_config import TextConfig

TEXT = TextConfig(
    vocab_size=1088, hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4, num_kv_heads=2,
    mrope_section=(4, 6, 6), tie_word_embeddings=True, rope_theta=1000.0, rms_norm_eps=1e-6,
    max_position_embeddings=4096,
)  # fmt: skip
LONGEST = 1024
ENGINE = EngineConfig(slots=64, prefill_rows=16, prefill_tokens=128, page_size=32)


def buckets(tolerance: float = 1.3, shards: int = 1) -> Buckets:
    return Buckets.from_config(dataclasses.replace(ENGINE, shape_tolerance=tolerance), TEXT, LONGEST, shards)


def sequences(lengths: list[int], shards: int = 1) -> list[SequenceState]:
    return [SequenceState(i, i, cached=cached, shard=i % shards) for i, cached in enumerate(lengths)]


def holds(shape, needed) -> bool:
    return all(size >= need for size, need in zip(shape, needed, strict=True))


@pytest.mark.parametrize("tolerance", [1.0, 1.3, 2.5, 100.0])
def test_every_batch_has_a_shape_of_similar_cost(tolerance):
    made = buckets(tolerance)
    assert made.decode[-1] == (64, 32) and made.prefill[-1] == (16, 128, 32)
    decode = list(itertools.product((8, 16, 32, 48, 64), (4, 8, 12, 16, 24, 32)))
    prefill = list(itertools.product((4, 8, 16), (32, 128), (0, 8, 16, 32)))
    for kept, every, factor in ((made.decode, decode, tolerance), (made.prefill, prefill, max(tolerance, 2.5))):
        assert set(kept) <= set(every)
        for shape in every:
            cheapest = min(made.cost(larger) for larger in kept if holds(larger, shape))
            assert cheapest <= factor * made.cost(shape)
        for one, other in itertools.permutations(kept, 2):
            assert not (holds(other, one) and made.cost(other) <= factor * made.cost(one)), (one, other)


def test_a_higher_tolerance_compiles_fewer_programs():
    counts = [(len(buckets(tolerance).decode), len(buckets(tolerance).prefill)) for tolerance in (1.0, 1.3, 1.8, 2.5)]
    assert counts == [(30, 10), (21, 10), (11, 10), (8, 10)]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, LONGEST - 1), min_size=1, max_size=64), shards=st.sampled_from([1, 2]))
def test_each_sequence_is_in_one_group_whose_shape_holds_it(lengths, shards):
    made, batch = buckets(shards=shards), sequences(lengths, shards)
    groups = made.plan_decode(batch, ENGINE.page_size, shards)
    assert sorted(sequence.id for group, _ in groups for sequence in group) == list(range(len(batch)))
    for group, (rows, width) in groups:
        assert max(num_pages(sequence.cached, ENGINE.page_size) for sequence in group) <= width
        for shard in range(shards):
            assert sum(sequence.shard == shard for sequence in group) <= rows // shards
    needed = (
        shards * -(-len(batch) // shards),
        max(num_pages(sequence.cached, ENGINE.page_size) for sequence in batch),
    )
    together = min(made.cost(shape) for shape in made.decode if holds(shape, needed))
    assert sum(made.cost(shape) for _, shape in groups) <= together


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, LONGEST - 200), st.integers(1, 128)), min_size=1, max_size=16),
)
def test_each_chunk_is_in_one_group_whose_shape_holds_it(chunks):
    batch = sequences([cached for cached, _ in chunks])
    given_chunks = [(sequence, count) for sequence, (_, count) in zip(batch, chunks, strict=True)]
    groups = buckets().plan_prefill(given_chunks, ENGINE.page_size, 1)
    planned = sorted(((sequence.id, count) for group, _ in groups for sequence, count in group))
    assert planned == [(sequence.id, count) for sequence, count in given_chunks]
    for group, (rows, tokens, width) in groups:
        assert len(group) <= rows and max(count for _, count in group) <= tokens
        assert max(num_pages(sequence.cached, ENGINE.page_size) for sequence, _ in group) <= width


def test_short_rows_are_not_padded_to_a_long_one():
    batch = sequences([200] * 56 + [1000] * 8)
    groups = buckets().plan_decode(batch, ENGINE.page_size, 1)
    assert sorted((len(group), shape) for group, shape in groups) == [(8, (8, 32)), (56, (64, 8))]
    few = sequences([100, 300])
    assert len(buckets().plan_decode(few, ENGINE.page_size, 1)) == 1, "a second dispatch reads the weights again"


def test_the_cost_of_weights_is_counted_in_pages():
    """Of 4 × (2 × 128 × 6 × 32 + 3 × 128 × 384) + 1088 × 128 weights; a page has 2 × 4 × 32 × 2 × 32 numbers."""
    assert StepCost.of_model(TEXT, 32).weights == (4 * (49_152 + 147_456) + 139_264) / 16_384


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape_tolerance": 0.9}, r"engine.shape_tolerance is 0.9; it must be at least 1"),
        ({"min_live_rows": 1.5}, r"engine.min_live_rows is 1.5; it must be between 0 and 1"),
        ({"slots": 63}, r"engine.slots 63 is not a multiple of 2 data-parallel shards"),
    ],
)
def test_invalid_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Buckets.from_config(dataclasses.replace(ENGINE, **fields), TEXT, LONGEST, 2)
