"""Pictures to arrays of a listed set of shapes. All index arithmetic is numpy on the host.

Inside a picture the patches stand window by window (raster order of windows; inside a window raster order of
2x2 squares), so that a window is a contiguous run and a square is four neighbors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.model.model_config import VisionConfig

AnyArray = Array | np.ndarray  # on the host until a jitted function takes it
Grid = tuple[int, int, int]  # frames, rows of patches, columns of patches
Picture = tuple[Float[np.ndarray, "p patch_dim"], Grid]


@dataclass(frozen=True, order=True)
class VisionBucket:
    """A shape: ``rows`` rows of ``length`` patches, and room for ``windows`` rows of one window's length.

    A picture needs a row it fits in; small ones share a row. When a row is no longer than a window, windows
    stay in the pictures' rows and ``windows`` is ignored.
    """

    rows: int
    length: int
    windows: int

    @property
    def merged(self) -> int:
        """Merged tokens M of this shape (2x2 patches each)."""
        return self.rows * self.length // 4

    @classmethod
    def of(cls, rows: int, length: int, window_patches: int = 64) -> VisionBucket:
        """Room for a quarter more window rows than patches need: windows at a picture's edges are not full."""
        return cls(rows, length, -(-rows * length * 5 // (4 * window_patches)))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "patches",
        "coordinates",
        "picture_segments",
        "window_segments",
        "window_index",
        "window_inverse",
        "merged_index",
        "merged_inverse",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class VisionBatch:
    """R rows of P patches; W window rows of Q patches (64 as published); M = R*P/4 merged tokens."""

    patches: Float[AnyArray, "R P half"]  # one frame of each patch: the second of a still picture is equal
    coordinates: Int[AnyArray, "R P 2"]  # row and column of the patch in its picture
    picture_segments: Int[AnyArray, "R P"]  # number of the picture from 1; 0 is padding
    window_segments: Int[AnyArray, "W Q"]  # number of the window from 1; 0 is padding
    window_index: Int[AnyArray, "W Q"] | None  # patch (row * P + column) in each window slot; R*P is padding
    window_inverse: Int[AnyArray, "R*P"] | None  # slot of each patch; W*Q for padding
    merged_index: Int[AnyArray, "M"]  # in placeholder order, the square (in row order); M is padding
    merged_inverse: Int[AnyArray, "M"]


def merged_tokens(grid: Grid, config: VisionConfig | None = None) -> int:
    """Image placeholders of a picture. Every count of placeholders in this project is this function's."""
    frames, height, width = grid
    merge = 2 if config is None else config.spatial_merge_size
    if frames != 1:
        raise ValueError(f"grid {grid}: only still pictures (one temporal patch) are supported")
    if height % merge or width % merge or height < merge or width < merge:
        raise ValueError(f"grid {grid}: rows and columns of patches must be multiples of {merge}")
    return height * width // merge**2


@functools.lru_cache(maxsize=4096)
def _window_order(height: int, width: int, merge: int, window: int):
    """For an h x w grid: the permutation from raster-of-squares order to window order (in squares), the patches
    of each window, and each patch's (row, column) in window order."""
    rows, columns = height // merge, width // merge
    squares = np.arange(rows * columns).reshape(rows, columns)
    runs = [
        squares[top : top + window, left : left + window].reshape(-1)
        for top in range(0, rows, window)
        for left in range(0, columns, window)
    ]
    order = np.concatenate(runs)
    inside = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), -1).reshape(1, -1, 2)
    corner = np.stack([order // columns, order % columns], -1)[:, None] * merge
    coordinates = (corner + inside).reshape(-1, 2).astype(np.int32)
    return order.astype(np.int32), tuple(len(run) * merge**2 for run in runs), coordinates


def _first_fit(sizes: Sequence[int], length: int, rows: int) -> list[tuple[int, int]] | None:
    """(row, offset) of every piece, longest first into the first row with room; None when they do not fit."""
    used = np.zeros(rows, np.int64)
    places: list[tuple[int, int]] = [(0, 0)] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        free = np.flatnonzero(used + sizes[i] <= length)
        if not free.size:
            return None
        places[i] = (int(free[0]), int(used[free[0]]))
        used[free[0]] += sizes[i]
    return places


@dataclass(frozen=True)
class _Plan:
    bucket: VisionBucket
    pictures: list[tuple[int, int]]
    windows: list[tuple[int, int]] | None


def _plan(grids: Sequence[Grid], buckets: Sequence[VisionBucket], config: VisionConfig) -> _Plan:
    sizes = [height * width for _, height, width in grids]
    pieces = [n for grid in grids for n in _order_of(grid, config)[1]]
    for bucket in sorted(buckets, key=lambda b: (b.rows * b.length, b.length)):
        pictures = _first_fit(sizes, bucket.length, bucket.rows)
        if pictures is None:
            continue
        if bucket.length <= config.window_patches:
            return _Plan(bucket, pictures, None)
        windows = _first_fit(pieces, config.window_patches, bucket.windows)
        if windows is not None:
            return _Plan(bucket, pictures, windows)
    raise ValueError(
        f"{len(grids)} pictures of {sum(sizes)} patches (largest {max(sizes, default=0)}) fit none of the image "
        f"buckets {list(buckets)}; add a larger bucket or lower image.max_pixels"
    )


def fits(grids: Sequence[Grid], buckets: Sequence[VisionBucket], config: VisionConfig) -> bool:
    """Whether some bucket holds pictures of these grids together."""
    try:
        _plan(grids, buckets, config)
    except ValueError:
        return False
    return True


def _order_of(grid: Grid, config: VisionConfig):
    return _window_order(
        grid[1],
        grid[2],
        config.spatial_merge_size,
        config.window_size // config.patch_size // config.spatial_merge_size,
    )


def _one_frame(patches: np.ndarray, config: VisionConfig) -> np.ndarray:
    frames = patches.reshape(-1, config.in_channels, config.temporal_patch_size, config.patch_size**2)
    if not all(np.array_equal(frames[:, :, 0], frames[:, :, i]) for i in range(1, config.temporal_patch_size)):
        raise ValueError("patches hold two different frames: videos are not supported")
    return frames[:, :, 0].reshape(len(patches), -1)


def vision_batch(pictures: Sequence[Picture], buckets: Sequence[VisionBucket], config: VisionConfig) -> VisionBatch:
    """Lay pictures out in the smallest bucket that holds them.

    Placeholder k of picture i reads row ``sum(merged_tokens of pictures before i) + k`` of the encoded batch.
    Raises ValueError when no bucket fits, or a picture's patches and grid disagree.
    """
    for patches, grid in pictures:
        if patches.shape != (merged_tokens(grid, config) * config.spatial_merge_size**2, config.patch_dim):
            raise ValueError(f"patches of shape {patches.shape} do not match grid {grid}")
    plan = _plan([grid for _, grid in pictures], buckets, config)
    rows, length, square = plan.bucket.rows, plan.bucket.length, config.spatial_merge_size**2
    if length % square:
        raise ValueError(f"bucket length {length} must be a multiple of {square} patches")
    half = config.patch_dim // config.temporal_patch_size
    patches_out = np.zeros((rows * length, half), np.float32)
    coordinates = np.zeros((rows * length, 2), np.int32)
    picture_segments = np.zeros(rows * length, np.int32)
    merged = rows * length // square
    merged_index = np.full(merged, merged, np.int32)
    merged_inverse = np.full(merged, merged, np.int32)

    in_place = plan.windows is None
    window_rows = rows if in_place else plan.bucket.windows
    window_length = length if in_place else config.window_patches
    window_segments = np.zeros(window_rows * window_length, np.int32)
    window_index = np.full(window_rows * window_length, rows * length, np.int32)
    window_inverse = np.full(rows * length, window_rows * window_length, np.int32)

    token, piece = 0, 0
    for number, ((patches, grid), (row, offset)) in enumerate(zip(pictures, plan.pictures, strict=True)):
        order, runs, places = _order_of(grid, config)
        start, count = row * length + offset, len(patches)
        one = _one_frame(patches, config).reshape(-1, square, half)
        patches_out[start : start + count] = one[order].reshape(count, half)
        coordinates[start : start + count] = places
        picture_segments[start : start + count] = number + 1
        tokens = start // square + np.arange(len(order), dtype=np.int32)
        merged_index[token + order] = tokens
        merged_inverse[tokens] = token + order
        token += len(order)
        for run in runs:
            if in_place:
                slot = start
            else:
                window_row, window_offset = plan.windows[piece]
                slot = window_row * window_length + window_offset
                window_index[slot : slot + run] = np.arange(start, start + run)
                window_inverse[start : start + run] = np.arange(slot, slot + run)
            window_segments[slot : slot + run] = piece + 1
            piece, start = piece + 1, start + run

    return VisionBatch(
        patches=patches_out.reshape(rows, length, half),
        coordinates=coordinates.reshape(rows, length, 2),
        picture_segments=picture_segments.reshape(rows, length),
        window_segments=window_segments.reshape(window_rows, window_length),
        window_index=None if in_place else window_index.reshape(window_rows, window_length),
        window_inverse=None if in_place else window_inverse,
        merged_index=merged_index,
        merged_inverse=merged_inverse,
    )
