"""The input pipeline of supervised training: shuffles, encodes and packs records, from a position that can be saved.

    records -> shuffle (a new order every epoch) -> encode -> pack into microbatches of one optimizer step

A record's index in the stream depends on the seed alone. The iterator's state consists of the stream index of the next
record and those of the records waiting in the packer; restoring it reproduces the next batch exactly. Encoding and
packing run in a background thread, `prefetch` steps ahead; the state always belongs to the last batch returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import grain

from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.faults import RowError
from dv2_jax.data.packing import Example, PackedBatch, Packer, PackSpec, build_batch, with_shared_denominator
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.vision_inputs import VisionBucket

R = TypeVar("R")
TPU_LANES = 128  # the TPU attention kernel requires row lengths that are multiples of it
MAX_SKIPPED = 10_000  # consecutive skipped records that raise an error


def image_buckets(
    image: ImageConfig, agent: AgentConfig, model: ModelConfig, *, rows: int, row_tokens: int
) -> tuple[VisionBucket, ...]:
    """Returns the image buckets for one group of `rows` rows: a common one and, if larger, one for full trajectories.

    The common bucket has room for images that take a sixteenth of the tokens. The larger one is sized at 2x the
    patches of a row full of maximum-size images, so that first-fit packing cannot fail. If trajectories may not hold
    images (`agent.max_images` is 0), the only bucket is empty.
    """
    vision = model.vision
    window = vision.window_patches
    if not agent.max_images:
        return (VisionBucket(0, window, 0),)
    largest = -(-image.max_pixels // vision.patch_size**2)  # patches
    unit = window if largest <= window else math.lcm(window, TPU_LANES)
    image_length = -(-largest // unit) * unit  # patches of a maximum-size image, padded

    def bucket(patches: int) -> VisionBucket:
        length = min(image_length, -(-patches // unit) * unit)
        return VisionBucket.for_patches(-(-patches // length), length, window)

    merge = vision.spatial_merge_size**2
    common = bucket(rows * row_tokens * merge // 16)
    full = bucket(2 * min(agent.max_images * image_length, row_tokens * merge))
    if full.rows * full.length <= common.rows * common.length:
        return (common,)
    return (common, full)


def packed_batches(
    records: Sequence[R],
    encode: Callable[[R], Example | None],
    spec: PackSpec,
    *,
    seed: int,
    microbatches: int = 1,
    prefetch: int = 2,
) -> grain.DatasetIterator[list[PackedBatch]]:
    """Iterates endlessly over steps, each a list of `microbatches` packed batches with a shared denominator.

    `encode` may return None to skip a record. `get_state` and `set_state` save and restore the position.
    """
    if not len(records):
        raise ValueError("there are no records to train on")
    examples = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None).map(encode)
    steps = _Pack(examples, spec, microbatches, max_skipped=min(MAX_SKIPPED, 2 * len(records)))
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(steps, prefetch_buffer_size=prefetch) if prefetch else steps
    )


def stream_batches(
    stream: Callable[[], Iterable[Example]], spec: PackSpec, *, microbatches: int = 1, prefetch: int = 2
) -> grain.DatasetIterator[list[PackedBatch]]:
    """Like `packed_batches`, for an endless generator without random access.

    Resuming regenerates the consumed examples, so `stream()` must yield the same examples each time.
    """
    steps = _Pack(_ResumableStream(stream), spec, microbatches)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(steps, prefetch_buffer_size=prefetch) if prefetch else steps
    )


class _ResumableStream:
    """Indexes a generator: a larger index advances it, a smaller one restarts it."""

    def __init__(self, stream: Callable[[], Iterable[Example]]):
        self._stream = stream
        self._iterator = iter(stream())
        self._next_index = 0

    def __getitem__(self, index: int) -> Example:
        if index < self._next_index:
            self._iterator = iter(self._stream())
            self._next_index = 0
        while True:
            example = next(self._iterator)
            self._next_index += 1
            if self._next_index > index:
                return example


class _Pack(grain.IterDataset):
    def __init__(
        self,
        examples: grain.MapDataset | _ResumableStream,
        spec: PackSpec,
        microbatches: int,
        max_skipped: int = MAX_SKIPPED,
    ):
        super().__init__(())
        self._arguments = (examples, spec, microbatches, max_skipped)

    def __iter__(self) -> _PackIterator:
        return _PackIterator(*self._arguments)


class _PackIterator(grain.DatasetIterator):
    def __init__(
        self, examples: grain.MapDataset | _ResumableStream, spec: PackSpec, microbatches: int, max_skipped: int
    ):
        super().__init__(())
        self._examples, self._spec, self._microbatches = examples, spec, microbatches
        self._max_skipped = max_skipped
        self._next = 0  # index in the shuffled, repeated stream
        self._packer = Packer(spec)

    def __next__(self) -> list[PackedBatch]:
        built = []
        for _ in range(self._microbatches):
            skipped = 0
            while self._packer.needs_more():
                example = self._examples[self._next]
                skipped = 0 if example is not None else skipped + 1
                if skipped > self._max_skipped:
                    raise RowError(f"{skipped:,} rows one after the other could not be encoded: nothing to train on")
                if example is not None:
                    self._packer.add(example, stream_index=self._next)
                self._next += 1
            built.append(build_batch(self._packer.pop_batch(), self._spec))
        return with_shared_denominator(built)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next, "waiting": list(self._packer.stream_indices)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"])
        self._packer = Packer(self._spec)
        for index in state["waiting"]:
            self._packer.add(self._examples[int(index)], stream_index=int(index))
        self._packer.prioritize_all()


def shuffled(count: int, seed: int) -> Sequence[int]:
    """Returns an endless sequence of record indices in shuffled order: a new permutation of `count` every epoch."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(None)
