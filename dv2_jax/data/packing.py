"""Packs many token sequences with images into few rows of a fixed shape.

An example is never split over rows; a row holds several examples, distinguished by `segment_ids` (0 is padding).
Columns are aligned with the position that *predicts*: entry `t` of `targets`, `loss_weight`, `behavior_logprobs`
and `advantages` belongs to token `t + 1` of the same segment, so the loss never crosses from one example into the
next.

Rows are divided into `groups` of equal size, one per data shard. Images belong to a group: each distinct image (by
digest) of a group is encoded once, and `image_index` indexes the image embeddings of that group. Sharding the
group axis over devices therefore needs no communication.

All shapes come from a `PackSpec`; only the vision arrays vary, within the buckets that the spec lists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, fits, vision_batch


@dataclass(frozen=True)
class Example:
    """One token sequence with its training signal.

    `loss_weight[t]` is the weight of predicting token `t`; the first token has no predictor, so its weight is
    ignored. `behavior_logprobs` are the sampler's, 0 where a token was not sampled.
    """

    token_ids: Sequence[int]
    loss_weight: Sequence[float] | np.ndarray
    images: tuple[ImageInput, ...] = ()  # in placeholder order
    behavior_logprobs: Sequence[float] | np.ndarray | None = None
    advantage: float = 0.0

    @property
    def weight(self) -> float:
        """Total weight of the tokens that have a predictor."""
        return float(np.sum(np.asarray(self.loss_weight, np.float64)[1:]))


@dataclass(frozen=True)
class PackSpec:
    """The shapes of a packed batch."""

    model: ModelConfig
    rows: int  # B
    row_tokens: int  # T
    image_buckets: tuple[VisionBucket, ...]  # shapes of a group's images; every batch takes the smallest that fits
    groups: int = 1  # data shards; divides rows

    def __post_init__(self):
        if self.rows % self.groups:
            raise ValueError(f"rows={self.rows} is not a multiple of groups={self.groups}, the number of data shards")

    def fits(self, grids: Iterable[tuple[int, int, int]]) -> bool:
        """Returns True if images of these grids fit one group."""
        return fits(list(grids), self.image_buckets, self.model.vision)

    def bucket(self, groups: Iterable[Iterable[tuple[int, int, int]]]) -> VisionBucket:
        """Returns the smallest bucket that the images, given by their grids, of every group fit."""
        groups = [list(grids) for grids in groups]
        ordered = sorted(self.image_buckets, key=lambda bucket: bucket.num_merged_tokens)
        return next(b for b in ordered if all(fits(grids, (b,), self.model.vision) for grids in groups))

    def check_example(self, example: Example) -> None:
        """Raises ValueError if `example` fits no row or no image bucket, or if its columns differ in length."""
        tokens = len(example.token_ids)
        if tokens > self.row_tokens:
            raise ValueError(
                f"an example of {tokens} tokens does not fit a row of row_tokens={self.row_tokens};"
                " raise row_tokens or shorten it"
            )
        if tokens < 2:
            raise ValueError("an example needs at least two tokens: the first predicts the second")
        for name in ("loss_weight", "behavior_logprobs"):
            column = getattr(example, name)
            if column is not None and len(column) != tokens:
                raise ValueError(f"{name} has {len(column)} entries for {tokens} tokens")
        grids = list({image.digest: image.grid for image in example.images}.values())
        if not self.fits(grids):
            raise ValueError(f"an example with images of grids {grids} fits none of image_buckets={self.image_buckets}")


@jax.tree_util.register_dataclass  # every field is a child of the pytree
@dataclass(frozen=True)
class PackedBatch:
    """One microbatch: B rows in G groups of B/G consecutive rows, with M image embeddings per group."""

    token_ids: Int[Array, "B T"]
    targets: Int[Array, "B T"]  # the next token of the same segment, else the padding id
    segment_ids: Int[Array, "B T"]  # 0: padding
    positions: Int[Array, "3 B T"]
    loss_weight: Float[Array, "B T"]  # weight of predicting each target
    image_index: Int[Array, "B T"]  # row of the group's image embeddings, -1 for text
    vision: VisionBatch  # every leaf with a leading G
    behavior_logprobs: Float[Array, "B T"]  # log-probs of the targets at sampling time
    advantages: Float[Array, "B T"]  # advantages of the targets
    denominator: Float[Array, ""]  # divides the weighted sum over *all* microbatches of one step
    reference_logprobs: Float[Array, "B T"] | None = None  # log-probs of the targets under the reference policy


def first_fit_decreasing(
    lengths: Sequence[int], rows: int, row_tokens: int, *, priority: int = 0, admit=lambda row, item: True
) -> tuple[list[list[int]], list[int]]:
    """Assigns items to `rows` bins of `row_tokens`, longest first; the first `priority` items precede all others.

    `admit(row, item)` may refuse an assignment. Returns the items of each row, and the unassigned items in order.
    """
    order = sorted(range(priority), key=lambda i: -lengths[i]) + sorted(
        range(priority, len(lengths)), key=lambda i: -lengths[i]
    )
    room = [row_tokens] * rows
    assigned: list[list[int]] = [[] for _ in range(rows)]
    left = []
    for item in order:
        row = next((r for r in range(rows) if room[r] >= lengths[item] and admit(r, item)), None)
        if row is None:
            left.append(item)
        else:
            room[row] -= lengths[item]
            assigned[row].append(item)
    return assigned, sorted(left)


class Packer:
    """Collects examples in a pool and yields full batches.

    Examples left over from an earlier batch are assigned first, so none waits indefinitely. The pool is the entire
    state: the same pool and the same further examples give the same batches.
    """

    def __init__(self, spec: PackSpec, *, lookahead: float = 1.25):
        self.spec = spec
        self.pool: list[Example] = []
        self.stream_indices: list[int] = []  # position of each pooled example in its source
        self._num_left_over = 0  # examples at the head of the pool that an earlier batch had no room for
        self._target_tokens = lookahead * spec.rows * spec.row_tokens

    def needs_more(self) -> bool:
        """Returns True if the pool should grow before the next batch (a pool larger than the batch packs tighter)."""
        return sum(len(e.token_ids) for e in self.pool) < self._target_tokens

    def add(self, example: Example, stream_index: int = -1) -> None:
        """Adds an example, with its position in the source; raises ValueError if it fits no batch."""
        self.spec.check_example(example)
        self.pool.append(example)
        self.stream_indices.append(stream_index)

    def prioritize_all(self) -> None:
        """Treats the entire pool as left over from an earlier batch (after a saved pool was restored)."""
        self._num_left_over = len(self.pool)

    def pop_batch(self) -> list[list[Example]]:
        """Removes one batch from the pool and returns the examples of each row."""
        spec, pool = self.spec, self.pool
        grids: list[dict[str, tuple[int, int, int]]] = [{} for _ in range(spec.groups)]  # by image digest
        rows_per_group = spec.rows // spec.groups

        def admit(row: int, item: int) -> bool:
            group = grids[row // rows_per_group]
            new = {image.digest: image.grid for image in pool[item].images if image.digest not in group}
            if new and not spec.fits([*group.values(), *new.values()]):
                return False
            group.update(new)
            return True

        lengths = [len(e.token_ids) for e in pool]
        assigned, left = first_fit_decreasing(
            lengths, spec.rows, spec.row_tokens, priority=self._num_left_over, admit=admit
        )
        self.pool = [pool[i] for i in left]
        self.stream_indices = [self.stream_indices[i] for i in left]
        self._num_left_over = len(left)
        return [[pool[i] for i in row] for row in assigned]


def pack_step(examples: Sequence[Example], spec: PackSpec, *, denominator: float | None = None) -> list[PackedBatch]:
    """Packs `examples` into as few microbatches as fit, with one shared denominator (default: their total weight)."""
    total = sum(e.weight for e in examples) if denominator is None else denominator
    return [build_batch(rows, spec, denominator=total) for rows in assign_rows(examples, spec)]


Rows = list[list[Example]]  # the examples of each row of a microbatch


def assign_rows(examples: Sequence[Example], spec: PackSpec) -> list[Rows]:
    """Assigns all of `examples` to the rows of as few microbatches as possible."""
    for example in examples:
        spec.check_example(example)
    row_grids: list[dict[str, tuple[int, int, int]]] = [{} for _ in examples]  # of each row's images, by digest

    def admit(row: int, item: int) -> bool:
        union = row_grids[row] | {image.digest: image.grid for image in examples[item].images}
        if len(union) > len(row_grids[row]) and not spec.fits(union.values()):
            return False
        row_grids[row] = union
        return True

    lengths = [len(e.token_ids) for e in examples]
    assigned, _ = first_fit_decreasing(lengths, len(examples), spec.row_tokens, admit=admit)
    rows = deque((row, grids) for row, grids in zip(assigned, row_grids, strict=True) if row)
    microbatches = []
    while rows:
        batch: Rows = []
        for _ in range(spec.groups):
            group_grids: dict[str, tuple[int, int, int]] = {}
            for _ in range(spec.rows // spec.groups):
                row: list[int] = []
                if rows and spec.fits((group_grids | rows[0][1]).values()):
                    row, grids = rows.popleft()
                    group_grids |= grids
                batch.append([examples[i] for i in row])
        microbatches.append(batch)
    return microbatches


def bucket_for_rows(rows: Rows, spec: PackSpec) -> VisionBucket:
    """Returns the bucket that `build_batch` uses for the images of these rows."""
    size = spec.rows // spec.groups
    groups = [sum(rows[first : first + size], []) for first in range(0, spec.rows, size)]
    return spec.bucket({image.digest: image.grid for e in group for image in e.images}.values() for group in groups)


def with_shared_denominator(microbatches: Sequence[PackedBatch]) -> list[PackedBatch]:
    """Sets the denominator of the microbatches of one step to their total weight."""
    total = np.float32(max(sum(float(b.loss_weight.sum(dtype=np.float64)) for b in microbatches), 1e-8))
    return [replace(b, denominator=total) for b in microbatches]


def build_batch(rows: Sequence[Sequence[Example]], spec: PackSpec, *, denominator: float | None = None) -> PackedBatch:
    """Builds the arrays of examples already assigned to rows. Arrays are numpy; the caller transfers them."""
    shape = (spec.rows, spec.row_tokens)
    token_ids = np.full(shape, spec.model.pad_token_id, np.int32)
    targets = np.full(shape, spec.model.pad_token_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    positions = np.zeros((3, *shape), np.int32)
    image_index = np.full(shape, -1, np.int32)
    loss_weight = np.zeros(shape, np.float32)
    behavior = np.zeros(shape, np.float32)
    advantages = np.zeros(shape, np.float32)
    # Per group, from digest to the image and the row of its first embedding.
    images: list[dict[str, tuple[ImageInput, int]]] = [{} for _ in range(spec.groups)]
    embedding_rows = [0] * spec.groups

    for b, row in enumerate(rows):
        g = b // (spec.rows // spec.groups)
        start = 0
        for segment, example in enumerate(row, start=1):
            ids = np.asarray(example.token_ids, np.int32)
            tokens = slice(start, start + len(ids))
            predictors = slice(start, start + len(ids) - 1)
            token_ids[b, tokens] = ids
            segment_ids[b, tokens] = segment
            positions[:, b, tokens], _ = mrope_positions(ids, [image.grid for image in example.images], spec.model)
            targets[b, predictors] = ids[1:]
            loss_weight[b, predictors] = np.asarray(example.loss_weight, np.float32)[1:]
            advantages[b, predictors] = example.advantage
            if example.behavior_logprobs is not None:
                behavior[b, predictors] = np.asarray(example.behavior_logprobs, np.float32)[1:]
            rows_of_image = []
            for image in example.images:
                count = num_image_tokens(image.grid)
                if image.digest not in images[g]:
                    images[g][image.digest] = (image, embedding_rows[g])
                    embedding_rows[g] += count
                first = images[g][image.digest][1]
                rows_of_image.append(np.arange(first, first + count, dtype=np.int32))
            placeholders = np.flatnonzero(ids == spec.model.image_token_id)
            expected = sum(map(len, rows_of_image))
            if len(placeholders) != expected:
                raise ValueError(
                    f"{len(placeholders)} image placeholders, but {len(example.images)} images need {expected}"
                )
            if expected:
                image_index[b, start + placeholders] = np.concatenate(rows_of_image)
            start += len(ids)

    total = float(loss_weight.sum(dtype=np.float64)) if denominator is None else denominator
    return PackedBatch(
        token_ids=token_ids, targets=targets, segment_ids=segment_ids, positions=positions, loss_weight=loss_weight,
        image_index=image_index, vision=_stack_vision(images, spec), behavior_logprobs=behavior, advantages=advantages,
        denominator=np.float32(max(total, 1e-8)),
    )  # fmt: skip


def _stack_vision(images: list[dict[str, tuple[ImageInput, int]]], spec: PackSpec) -> VisionBatch:
    """Stacks one VisionBatch per group, all of the smallest bucket that every group fits."""
    bucket = spec.bucket([image.grid for image, _ in group.values()] for group in images)
    batches = [
        vision_batch([(image.patches, image.grid) for image, _ in group.values()], (bucket,), spec.model.vision)
        for group in images
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
