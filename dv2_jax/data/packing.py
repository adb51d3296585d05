"""Packing: many token sequences with pictures become few fixed-shape rows.

An example is placed whole into one row; rows hold several examples side by side, told apart by
``segment_ids`` (0 is padding). Columns are aligned with the position that *predicts*: entry ``t`` of
``targets``, ``loss_weight``, ``behavior_logprobs`` and ``advantages`` speaks of token ``t + 1`` of the same
segment, so a loss never crosses from one example into the next.

Rows are divided into ``groups`` of equal size, one per data shard. Pictures belong to a group: each distinct
picture (by digest) of a group is encoded once, and ``image_index`` counts rows of that group's own image
embeddings. Splitting the group axis over devices therefore needs no communication.

All shapes come from a `PackSpec`; only the vision arrays vary, within the buckets that the spec lists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, fits, merged_tokens, vision_batch


class Picture(Protocol):
    """What packing needs of a preprocessed picture (`dv2_jax.agent.trajectory.PictureInput` has it)."""

    digest: str
    patches: np.ndarray  # Float[p 1176]
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Example:
    """One token sequence with what is learned from it.

    ``loss_weight[t]`` is the weight of predicting token ``t``; that of the first token has no predictor and is
    ignored. ``behavior_logprobs`` are the sampler's, 0 where a token was not sampled.
    """

    token_ids: Sequence[int]
    loss_weight: Sequence[float]
    pictures: tuple[Picture, ...] = ()  # in placeholder order
    behavior_logprobs: Sequence[float] | None = None
    advantage: float = 0.0

    @property
    def weight(self) -> float:
        """Total weight of the tokens that have a predictor."""
        return float(np.sum(np.asarray(self.loss_weight, np.float64)[1:]))


@dataclass(frozen=True)
class PackSpec:
    """The listed shapes of a packed batch."""

    model: ModelConfig
    rows: int  # B
    row_tokens: int  # T
    image_buckets: tuple[VisionBucket, ...]  # shapes of a group's pictures; every batch takes the smallest that fits
    groups: int = 1  # data shards; divides rows

    def __post_init__(self):
        if self.rows % self.groups:
            raise ValueError(f"rows={self.rows} is not a multiple of groups={self.groups}, the number of data shards")

    def hold(self, grids: Iterable[tuple[int, int, int]]) -> bool:
        """Whether one group has room for pictures of these grids."""
        return fits(list(grids), self.image_buckets, self.model.vision)

    def bucket(self, groups: Iterable[Iterable[tuple[int, int, int]]]) -> VisionBucket:
        """The smallest one that has room for the pictures, given by their grids, of every group."""
        held = [list(grids) for grids in groups]
        ordered = sorted(self.image_buckets, key=lambda bucket: bucket.merged)
        return next(b for b in ordered if all(fits(grids, (b,), self.model.vision) for grids in held))

    def check(self, example: Example) -> None:
        """Raise ValueError where `example` can never be placed or its lists disagree."""
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
        grids = list({p.digest: p.grid for p in example.pictures}.values())
        if not self.hold(grids):
            raise ValueError(
                f"an example with pictures of grids {grids} fits none of image_buckets={self.image_buckets}"
            )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_ids", "targets", "segment_ids", "positions", "loss_weight", "image_index", "vision",
                 "behavior_logprobs", "advantages", "denominator", "reference_logprobs"],
    meta_fields=[],
)  # fmt: skip
@dataclass(frozen=True)
class PackedBatch:
    """One microbatch. B rows in G groups of B/G consecutive rows; M image embeddings per group."""

    token_ids: Int[Array, "B T"]
    targets: Int[Array, "B T"]  # the next token of the same segment, else the padding id
    segment_ids: Int[Array, "B T"]  # 0: padding
    positions: Int[Array, "3 B T"]
    loss_weight: Float[Array, "B T"]  # of predicting targets
    image_index: Int[Array, "B T"]  # row of the group's image embeddings, -1 for text
    vision: VisionBatch  # every leaf with a leading G
    behavior_logprobs: Float[Array, "B T"]  # of targets
    advantages: Float[Array, "B T"]  # of targets
    denominator: Float[Array, ""]  # what the weighted sum over *all* microbatches of one step is divided by
    reference_logprobs: Float[Array, "B T"] | None = None  # of targets under the reference policy, where there is one


def first_fit_decreasing(
    lengths: Sequence[int], rows: int, row_tokens: int, *, urgent: int = 0, admit=lambda row, item: True
) -> tuple[list[list[int]], list[int]]:
    """Assign items to `rows` bins of `row_tokens`, longest first; the first `urgent` items before all others.

    `admit(row, item)` may refuse a placement. Returns the items of each row and those left over, in order.
    """
    order = sorted(range(urgent), key=lambda i: -lengths[i]) + sorted(
        range(urgent, len(lengths)), key=lambda i: -lengths[i]
    )
    room = [row_tokens] * rows
    placed: list[list[int]] = [[] for _ in range(rows)]
    left = []
    for item in order:
        row = next((r for r in range(rows) if room[r] >= lengths[item] and admit(r, item)), None)
        if row is None:
            left.append(item)
        else:
            room[row] -= lengths[item]
            placed[row].append(item)
    return placed, sorted(left)


class Packer:
    """A pool of waiting examples that yields full batches.

    Whoever waits from an earlier batch is placed first, so nobody starves. The pool is all the state there is:
    with the same pool and the same further examples, the same batches follow.
    """

    def __init__(self, spec: PackSpec, *, lookahead: float = 1.25):
        self.spec = spec
        self.pool: list[Example] = []
        self.places: list[int] = []  # of the pool's examples, as their source numbers them
        self._waited = 0  # the first so many have waited for a batch already
        self._enough = lookahead * spec.rows * spec.row_tokens

    def wants(self) -> bool:
        """Whether more examples would help before the next batch (a pool larger than the batch packs tighter)."""
        return sum(len(e.token_ids) for e in self.pool) < self._enough

    def add(self, example: Example, place: int = -1) -> None:
        self.spec.check(example)
        self.pool.append(example)
        self.places.append(place)

    def all_waited(self) -> None:
        """Treat the whole pool as left over from an earlier batch (when a saved pool is restored)."""
        self._waited = len(self.pool)

    def take(self) -> list[list[Example]]:
        """Remove one batch from the pool: the examples of each row."""
        spec, pool = self.spec, self.pool
        held: list[dict[str, tuple[int, int, int]]] = [{} for _ in range(spec.groups)]
        per_group = spec.rows // spec.groups

        def admit(row: int, item: int) -> bool:
            group = held[row // per_group]
            new = {p.digest: p.grid for p in pool[item].pictures if p.digest not in group}
            if new and not spec.hold([*group.values(), *new.values()]):
                return False
            group.update(new)
            return True

        lengths = [len(e.token_ids) for e in pool]
        placed, left = first_fit_decreasing(lengths, spec.rows, spec.row_tokens, urgent=self._waited, admit=admit)
        self.pool, self.places = [pool[i] for i in left], [self.places[i] for i in left]
        self._waited = len(left)
        return [[pool[i] for i in row] for row in placed]


def pack_step(examples: Sequence[Example], spec: PackSpec, *, denominator: float | None = None) -> list[PackedBatch]:
    """Pack all of `examples` into as few microbatches as fit, sharing one denominator (default: their weight)."""
    total = sum(e.weight for e in examples) if denominator is None else denominator
    return [build_batch(rows, spec, denominator=total) for rows in assign_rows(examples, spec)]


Rows = list[list[Example]]  # the examples of each row of a microbatch


def assign_rows(examples: Sequence[Example], spec: PackSpec) -> list[Rows]:
    """The rows of as few microbatches as hold all of `examples`."""
    for example in examples:
        spec.check(example)
    seen: list[dict[str, tuple[int, int, int]]] = [{} for _ in examples]  # pictures of a row

    def admit(row: int, item: int) -> bool:
        together = seen[row] | {p.digest: p.grid for p in examples[item].pictures}
        if len(together) > len(seen[row]) and not spec.hold(together.values()):
            return False
        seen[row] = together
        return True

    lengths = [len(e.token_ids) for e in examples]
    placed, _ = first_fit_decreasing(lengths, len(examples), spec.row_tokens, admit=admit)
    rows = deque((row, pictures) for row, pictures in zip(placed, seen, strict=True) if row)
    microbatches = []
    while rows:
        batch: Rows = []
        for _ in range(spec.groups):
            held: dict[str, tuple[int, int, int]] = {}
            for _ in range(spec.rows // spec.groups):
                fits_here = rows and spec.hold((held | rows[0][1]).values())
                row, pictures = rows.popleft() if fits_here else ([], {})
                held |= pictures
                batch.append([examples[i] for i in row])
        microbatches.append(batch)
    return microbatches


def bucket_of(rows: Rows, spec: PackSpec) -> VisionBucket:
    """The bucket in which `build_batch` lays out the pictures of these rows."""
    size = spec.rows // spec.groups
    groups = [sum(rows[first : first + size], []) for first in range(0, spec.rows, size)]
    return spec.bucket({p.digest: p.grid for e in group for p in e.pictures}.values() for group in groups)


def share_denominator(microbatches: Sequence[PackedBatch]) -> list[PackedBatch]:
    """Give the microbatches of one step the denominator that they have together: the weight of all of them."""
    total = np.float32(max(sum(float(b.loss_weight.sum(dtype=np.float64)) for b in microbatches), 1e-8))
    return [replace(b, denominator=total) for b in microbatches]


def build_batch(rows: Sequence[Sequence[Example]], spec: PackSpec, *, denominator: float | None = None) -> PackedBatch:
    """Lay out examples already assigned to rows. Arrays are numpy; the caller puts them on devices."""
    shape = (spec.rows, spec.row_tokens)
    token_ids = np.full(shape, spec.model.pad_token_id, np.int32)
    targets = np.full(shape, spec.model.pad_token_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    positions = np.zeros((3, *shape), np.int32)
    image_index = np.full(shape, -1, np.int32)
    loss_weight = np.zeros(shape, np.float32)
    behavior = np.zeros(shape, np.float32)
    advantages = np.zeros(shape, np.float32)
    pictures: list[dict[str, tuple[Picture, int]]] = [
        {} for _ in range(spec.groups)
    ]  # digest: picture, first embedding row
    merged = [0] * spec.groups

    for b, row in enumerate(rows):
        g = b // (spec.rows // spec.groups)
        start = 0
        for segment, example in enumerate(row, start=1):
            ids = np.asarray(example.token_ids, np.int32)
            at, before = slice(start, start + len(ids)), slice(start, start + len(ids) - 1)
            token_ids[b, at] = ids
            segment_ids[b, at] = segment
            positions[:, b, at], _ = mrope_positions(ids, [p.grid for p in example.pictures], spec.model)
            targets[b, before] = ids[1:]
            loss_weight[b, before] = np.asarray(example.loss_weight, np.float32)[1:]
            advantages[b, before] = example.advantage
            if example.behavior_logprobs is not None:
                behavior[b, before] = np.asarray(example.behavior_logprobs, np.float32)[1:]
            rows_of_image = []
            for picture in example.pictures:
                count = merged_tokens(picture.grid)
                if picture.digest not in pictures[g]:
                    pictures[g][picture.digest] = (picture, merged[g])
                    merged[g] += count
                first = pictures[g][picture.digest][1]
                rows_of_image.append(np.arange(first, first + count, dtype=np.int32))
            placeholders = np.flatnonzero(ids == spec.model.image_token_id)
            expected = sum(map(len, rows_of_image))
            if len(placeholders) != expected:
                raise ValueError(
                    f"{len(placeholders)} image placeholders, {expected} expected of {len(example.pictures)} pictures"
                )
            if expected:
                image_index[b, start + placeholders] = np.concatenate(rows_of_image)
            start += len(ids)

    total = float(loss_weight.sum(dtype=np.float64)) if denominator is None else denominator
    return PackedBatch(
        token_ids=token_ids, targets=targets, segment_ids=segment_ids, positions=positions, loss_weight=loss_weight,
        image_index=image_index, vision=_vision(pictures, spec), behavior_logprobs=behavior, advantages=advantages,
        denominator=np.float32(max(total, 1e-8)),
    )  # fmt: skip


def _vision(pictures: list[dict[str, tuple[Picture, int]]], spec: PackSpec) -> VisionBatch:
    """One VisionBatch per group, all in the smallest bucket that holds every group, stacked."""
    bucket = spec.bucket([p.grid for p, _ in group.values()] for group in pictures)
    batches = [
        vision_batch([(p.patches, p.grid) for p, _ in group.values()], (bucket,), spec.model.vision)
        for group in pictures
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def fill(batch: PackedBatch) -> dict[str, float]:
    """How full a batch is: the share of positions that hold tokens, and its number of examples."""
    segments = np.asarray(batch.segment_ids)
    return {"packed_fraction": float((segments > 0).mean()), "examples": float(segments.max(axis=1).sum())}
