"""Shapes that dispatches are padded to, so that all programs are compiled at warm-up, and the choice among them.

A batch is padded to the shape of a compiled program. Rows that need little and rows that need much are dispatched
separately where that costs less than one dispatch that pads all of them to the longest.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dv2_jax.config import ConfigError, EngineConfig
from dv2_jax.engine.sequence_state import SequenceState
from dv2_jax.model.model_config import TextConfig

_SHARDED_FIELDS = ("slots", "prefill_rows", "pages")  # totals over all devices
# Sizes of decode dispatches as fractions of the slots and of the longest sequence.
_DECODE_ROWS, _DECODE_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
# Sizes of prefill dispatches as fractions of the prefill rows, the prefill tokens and the longest sequence.
_PREFILL_ROWS, _PREFILL_TOKENS, _PREFILL_WIDTHS = (1 / 4, 1 / 2, 1), (1 / 4, 1), (1 / 4, 1 / 2, 1)
_PREFILL_TOLERANCE = 2.5  # of prefill shapes at least: a smaller part of the time, so fewer programs

Shape = tuple[int, ...]  # (rows, page-table width) of decode; (rows, tokens, page-table width) of prefill
Group = tuple[list[SequenceState], Shape]  # sequences of one dispatch and the shape that they are padded to


@dataclass(frozen=True)
class StepCost:
    """Estimates the time of one forward pass relative to that of reading one page of keys and values.

    The estimate only decides which shapes are compiled and how rows are grouped; shapes of decode are compared with shapes
    of decode, and prefill with prefill. Its constants are rough: on two CPU cores, times of the default model relative
    to the estimate differed by up to 1.6 between four shapes of decode, and by up to 2.2 between four of prefill.

    Attributes:
        weights: size of the decoder's weights in pages.
    """

    weights: float
    tokens_per_weight_read: float = 32.0  # tokens whose matmuls take as long as reading the weights
    tokens_per_page_read: float = 8.0  # queries whose attention to a page takes as long as reading it

    @classmethod
    def of_model(cls, text: TextConfig, page_size: int) -> StepCost:
        """Returns the cost for a decoder of this size; parameters and cache are of the same type."""
        attention = 2 * text.hidden_size * (text.num_heads + text.num_kv_heads) * text.head_dim
        layer = attention + 3 * text.hidden_size * text.intermediate_size
        head = text.vocab_size * text.hidden_size
        page = 2 * text.num_layers * page_size * text.num_kv_heads * text.head_dim
        return cls((text.num_layers * layer + head) / page)

    def __call__(self, shape: Shape) -> float:
        """Returns the cost of a decode step or of a prefill dispatch of this shape."""
        rows, *tokens, width = shape
        queries = tokens[0] if tokens else 1
        matmuls = self.weights * (1 + rows * queries / self.tokens_per_weight_read)
        return matmuls + rows * width * (1 + queries / self.tokens_per_page_read)


@dataclass(frozen=True)
class Buckets:
    """Shapes of the decode and prefill programs, the cheapest first.

    A prefill width of 0 has no cached prefix.
    """

    decode: tuple[Shape, ...]
    prefill: tuple[Shape, ...]
    cost: StepCost

    @classmethod
    def from_config(cls, config: EngineConfig, text: TextConfig, max_tokens: int, num_shards: int = 1) -> Buckets:
        """Returns shapes up to the configured sizes and a sequence of `max_tokens`.

        Raises:
            ValueError: if slots, prefill rows or pages are not divisible by `num_shards`, `shape_tolerance` is below
                1, or `min_live_rows` is not between 0 and 1.
        """
        for name in _SHARDED_FIELDS:
            if getattr(config, name) % num_shards:
                raise ValueError(
                    f"engine.{name} {getattr(config, name)} is not a multiple of {num_shards} data-parallel shards"
                )
        if config.shape_tolerance < 1:
            raise ValueError(f"engine.shape_tolerance is {config.shape_tolerance}; it must be at least 1")
        if not 0 <= config.min_live_rows <= 1:
            raise ValueError(f"engine.min_live_rows is {config.min_live_rows}; it must be between 0 and 1")
        cost = StepCost.of_model(text, config.page_size)
        longest = num_pages(max_tokens, config.page_size)
        decode = itertools.product(_rows(config.slots, num_shards, _DECODE_ROWS), _fractions(longest, _DECODE_WIDTHS))
        prefill = itertools.product(
            _rows(config.prefill_rows, num_shards, _PREFILL_ROWS),
            _fractions(config.prefill_tokens, _PREFILL_TOKENS),
            (0, *_fractions(longest, _PREFILL_WIDTHS)),
        )
        return cls(
            _without_similar(decode, cost, config.shape_tolerance),
            _without_similar(prefill, cost, max(config.shape_tolerance, _PREFILL_TOLERANCE)),
            cost,
        )

    def plan_decode(self, sequences: Sequence[SequenceState], page_size: int, num_shards: int) -> list[Group]:
        """Groups sequences by the cached pages that a decode dispatch reads."""
        return plan_groups(
            sequences, lambda sequence: (num_pages(sequence.cached, page_size),), self.decode, self.cost, num_shards
        )

    def plan_prefill(
        self, chunks: Sequence[tuple[SequenceState, int]], page_size: int, num_shards: int
    ) -> list[tuple[list[tuple[SequenceState, int]], Shape]]:
        """Groups prefill chunks (sequence, number of tokens) by their tokens and the cached pages before them."""
        counts = dict(chunks)

        def needs(sequence: SequenceState) -> Shape:
            return counts[sequence], num_pages(sequence.cached, page_size)

        groups = plan_groups(list(counts), needs, self.prefill, self.cost, num_shards)
        return [([(sequence, counts[sequence]) for sequence in group], shape) for group, shape in groups]


def plan_groups(
    sequences: Sequence[SequenceState],
    needs: Callable[[SequenceState], Shape],
    shapes: Sequence[Shape],
    cost: Callable[[Shape], float],
    num_shards: int,
) -> list[Group]:
    """Partitions sequences into dispatches of the least total cost, by dynamic programming.

    Sequences are sorted by what they need, rounded up to a size that some shape has, and split only between different
    needs.

    Args:
        needs: the sizes of a shape after its rows that a sequence needs.
        shapes: shapes in ascending order of cost, the last of which holds all sequences.
    """
    sizes = [sorted(set(axis)) for axis in zip(*(shape[1:] for shape in shapes), strict=True)]
    rounded = {
        sequence: tuple(bucket_for(axis, needed) for axis, needed in zip(sizes, needs(sequence), strict=True))
        for sequence in sequences
    }
    ordered = sorted(sequences, key=lambda sequence: rounded[sequence], reverse=True)
    classes = [list(group) for _, group in itertools.groupby(ordered, key=lambda sequence: rounded[sequence])]
    best: list[tuple[float, list[Group]]] = [(0.0, [])]
    for end in range(1, len(classes) + 1):
        options = []
        for start in range(end):
            group = [sequence for members in classes[start:end] for sequence in members]
            needed = rows_needed(group, num_shards), *map(max, zip(*(rounded[s] for s in group), strict=True))
            shape = next(shape for shape in shapes if _covers(shape, needed))
            options.append((best[start][0] + cost(shape), [*best[start][1], (group, shape)]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def rows_needed(sequences: Sequence[SequenceState], num_shards: int) -> int:
    """Returns the batch size that these sequences need when every shard has equally many rows."""
    return num_shards * max(Counter(sequence.shard for sequence in sequences).values())


def per_host(config: EngineConfig, hosts: int) -> EngineConfig:
    """Returns the engine sizes of one of `hosts` hosts.

    Raises:
        ConfigError: if slots, prefill rows or pages are not divisible by `hosts`.
    """
    for name in _SHARDED_FIELDS:
        if getattr(config, name) % hosts:
            raise ConfigError(
                f"engine.{name} = {getattr(config, name)} is not divisible by {hosts} hosts; use a multiple of {hosts}"
            )
    return replace(config, **{name: getattr(config, name) // hosts for name in _SHARDED_FIELDS})


def num_pages(tokens: int, page_size: int) -> int:
    """Returns the number of pages that hold `tokens` tokens."""
    return -(-tokens // page_size)


def bucket_for(sizes: Sequence[int], needed: int) -> int:
    """Returns the smallest of `sizes` (ascending) that is at least `needed`."""
    return next(size for size in sizes if size >= needed)


def _covers(shape: Shape, needed: Shape) -> bool:
    return all(size >= need for size, need in zip(shape, needed, strict=True))


def _without_similar(
    shapes: itertools.product[Shape], cost: Callable[[Shape], float], tolerance: float
) -> tuple[Shape, ...]:
    """Drops each shape that a larger one replaces at no more than `tolerance` times its cost; returns them by cost."""
    kept: list[Shape] = []
    for shape in sorted(shapes, key=cost, reverse=True):
        if not any(_covers(larger, shape) and cost(larger) <= tolerance * cost(shape) for larger in kept):
            kept.append(shape)
    return tuple(reversed(kept))


def _fractions(total: int, fractions: Sequence[float]) -> list[int]:
    return sorted({math.ceil(total * fraction) for fraction in fractions})


def _rows(rows: int, num_shards: int, fractions: Sequence[float]) -> list[int]:
    return [num_shards * count for count in _fractions(rows // num_shards, fractions)]
