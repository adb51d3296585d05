"""The input pipeline of supervised training: records, shuffled, encoded and packed, with a position that can be saved.

    records -> shuffle (a new order every epoch) -> encode -> pack into microbatches of one optimizer step

A record's place in the stream depends on the seed alone. The iterator's state is the place of the next record and
the places of those that wait in the packer; restoring it gives the very next batch, bit for bit. Encoding and packing
run in a background thread, `prefetch` steps ahead, and the state is always that of what was handed out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import grain

from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.packing import Example, PackedBatch, Packer, PackSpec, build_batch, share_denominator
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.vision_inputs import VisionBucket

R = TypeVar("R")
TPU_LANES = 128  # a TPU's attention kernel takes rows of multiples of it
MAX_SKIPPED = 10_000  # records left out in a row before that is an error


def image_buckets(
    image: ImageConfig, agent: AgentConfig, model: ModelConfig, *, rows: int, row_tokens: int
) -> tuple[VisionBucket, ...]:
    """Shapes of the pictures of one group of `rows` rows: a common one, and one for a trajectory full of pictures.

    The common one gives a sixteenth of the tokens to pictures. The other, listed only where it is larger, has room for
    as many of the largest pictures as one row can hold; twice their patches always fit by first fit.
    Where no trajectory may have pictures (`agent.max_images` 0) there is one shape, with room for none.
    """
    vision = model.vision
    window = vision.window_patches
    if not agent.max_images:
        return (VisionBucket(0, window, 0),)
    largest = -(-image.max_pixels // vision.patch_size**2)  # patches
    unit = window if largest <= window else math.lcm(window, TPU_LANES)
    picture = -(-largest // unit) * unit

    def bucket(patches: int) -> VisionBucket:
        length = min(picture, -(-patches // unit) * unit)
        return VisionBucket.of(-(-patches // length), length, window)

    merge = vision.spatial_merge_size**2
    common = bucket(rows * row_tokens * merge // 16)
    full = bucket(2 * min(agent.max_images * picture, row_tokens * merge))
    return (common,) if full.rows * full.length <= common.rows * common.length else (common, full)


def batches(
    records: Sequence[R],
    encode: Callable[[R], Example | None],
    spec: PackSpec,
    *,
    seed: int,
    microbatches: int = 1,
    prefetch: int = 2,
) -> grain.DatasetIterator[list[PackedBatch]]:
    """An endless iterator over steps, each a list of `microbatches` packed batches with a shared denominator.

    `encode` may return None for a record to leave out. `get_state` and `set_state` save and restore the position.
    """
    if not len(records):
        raise ValueError("there are no records to train on")
    examples = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None).map(encode)
    steps = _Pack(examples, spec, microbatches)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(steps, prefetch_buffer_size=prefetch) if prefetch else steps
    )


def batches_of_stream(
    stream: Callable[[], Iterable[Example]], spec: PackSpec, *, microbatches: int = 1, prefetch: int = 2
) -> grain.DatasetIterator[list[PackedBatch]]:
    """As `batches`, of an endless generator that can only be drawn from the start.

    It is resumed by drawing again what was consumed, so `stream()` must give the same examples each time.
    """
    steps = _Pack(_Replayed(stream), spec, microbatches)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(steps, prefetch_buffer_size=prefetch) if prefetch else steps
    )


class _Replayed:
    """Access by place to a generator; going forward is cheap, going back starts again."""

    def __init__(self, stream: Callable[[], Iterable[Example]]):
        self._stream, self._iterator, self._at = stream, iter(stream()), 0

    def __getitem__(self, place: int) -> Example:
        if place < self._at:
            self._iterator, self._at = iter(self._stream()), 0
        while True:
            example = next(self._iterator)
            self._at += 1
            if self._at > place:
                return example


class _Pack(grain.IterDataset):
    def __init__(self, examples: grain.MapDataset | _Replayed, spec: PackSpec, microbatches: int):
        super().__init__(())
        self._examples, self._spec, self._microbatches = examples, spec, microbatches

    def __iter__(self) -> _PackIterator:
        return _PackIterator(self._examples, self._spec, self._microbatches)


class _PackIterator(grain.DatasetIterator):
    def __init__(self, examples: grain.MapDataset | _Replayed, spec: PackSpec, microbatches: int):
        super().__init__(())
        self._examples, self._spec, self._microbatches = examples, spec, microbatches
        self._next = 0  # place in the shuffled, repeated stream
        self._packer = Packer(spec)

    def __next__(self) -> list[PackedBatch]:
        built = []
        for _ in range(self._microbatches):
            skipped = 0
            while self._packer.wants():
                example = self._examples[self._next]
                skipped = 0 if example is not None else skipped + 1
                if skipped > MAX_SKIPPED:
                    raise ValueError(f"{skipped:,} records in a row were left out by `encode`: nothing to train on")
                if example is not None:
                    self._packer.add(example, place=self._next)
                self._next += 1
            built.append(build_batch(self._packer.take(), self._spec))
        return share_denominator(built)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next, "waiting": list(self._packer.places)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"])
        self._packer = Packer(self._spec)
        for place in state["waiting"]:
            self._packer.add(self._examples[int(place)], place=int(place))
        self._packer.all_waited()


def shuffled(count: int, seed: int) -> Sequence[int]:
    """Item `place` is the index of the record drawn at that place: a new order of all `count` every epoch, for ever."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(None)
