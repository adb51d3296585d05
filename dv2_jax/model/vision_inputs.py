"""Packs images into arrays of a fixed set of shapes. All index arithmetic is numpy on the host.

The patches of an image are stored in window order (raster order of windows; within a window, raster order of 2x2 merge
units), so that a window is a contiguous slice and a merge unit is four consecutive patches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.model.image_grid import Grid, num_image_tokens
from dv2_jax.model.model_config import VisionConfig

AnyArray = Array | np.ndarray  # numpy on the host; traced or device arrays inside a jitted function
ImagePatches = tuple[Float[np.ndarray, "p patch_dim"], Grid]


@dataclass(frozen=True, order=True)
class VisionBucket:
    """A batch shape: `rows` rows of `length` patches, and room for `windows` rows of one window's length.

    An image must fit in one row; small images share a row. If a row is no longer than a window, windows stay in the
    images' rows and `windows` is ignored.
    """

    rows: int
    length: int
    windows: int

    @property
    def num_merged_tokens(self) -> int:
        """Returns M, the number of image tokens of this shape (2x2 patches each)."""
        return self.rows * self.length // 4

    @classmethod
    def for_patches(cls, rows: int, length: int, window_patches: int = 64) -> VisionBucket:
        """Creates a bucket with 25 % more window rows than patches fill: windows at an image's edges are not full."""
        return cls(rows, length, -(-rows * length * 5 // (4 * window_patches)))


@jax.tree_util.register_dataclass  # every field is a child of the pytree
@dataclass(frozen=True)
class VisionBatch:
    """Packed images: R rows of P patches; W window rows of Q patches (64 as published); M = R*P/4 image tokens."""

    patches: Float[AnyArray, "R P half"]  # one frame of each patch: the frames of a still image are equal
    coordinates: Int[AnyArray, "R P 2"]  # row and column of the patch in its image
    image_segments: Int[AnyArray, "R P"]  # number of the image from 1; 0 is padding
    window_segments: Int[AnyArray, "W Q"]  # number of the window from 1; 0 is padding
    window_index: Int[AnyArray, "W Q"] | None  # patch (row * P + column) in each window slot; R*P is padding
    window_index_inv: Int[AnyArray, "R*P"] | None  # slot of each patch; W*Q for padding
    merge_index: Int[AnyArray, "M"]  # merge unit (in row order) of each placeholder; M is padding
    merge_index_inv: Int[AnyArray, "M"]  # placeholder of each merge unit; M is padding


@functools.lru_cache(maxsize=4096)
def _window_order(height: int, width: int, merge: int, window: int):
    """Returns the window order of an h x w grid.

    Three values: the permutation from raster order to window order (in merge units), the number of patches of each
    window, and each patch's (row, column) in window order.
    """
    rows, columns = height // merge, width // merge
    merge_units = np.arange(rows * columns).reshape(rows, columns)
    windows = [
        merge_units[top : top + window, left : left + window].reshape(-1)
        for top in range(0, rows, window)
        for left in range(0, columns, window)
    ]
    order = np.concatenate(windows)
    within_unit = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), -1).reshape(1, -1, 2)
    unit_origin = np.stack([order // columns, order % columns], -1)[:, None] * merge
    coordinates = (unit_origin + within_unit).reshape(-1, 2).astype(np.int32)
    return order.astype(np.int32), tuple(len(units) * merge**2 for units in windows), coordinates


def _first_fit(sizes: Sequence[int], length: int, rows: int) -> list[tuple[int, int]] | None:
    """Packs by first-fit decreasing: returns (row, offset) of every item, or None if they do not fit."""
    used = np.zeros(rows, np.int64)
    placements: list[tuple[int, int]] = [(0, 0)] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        free = np.flatnonzero(used + sizes[i] <= length)
        if not free.size:
            return None
        placements[i] = (int(free[0]), int(used[free[0]]))
        used[free[0]] += sizes[i]
    return placements


@dataclass(frozen=True)
class _Plan:
    bucket: VisionBucket
    images: list[tuple[int, int]]
    windows: list[tuple[int, int]] | None


def _plan(grids: Sequence[Grid], buckets: Sequence[VisionBucket], config: VisionConfig) -> _Plan:
    sizes = [height * width for _, height, width in grids]
    windows_of_images = [n for grid in grids for n in _grid_window_order(grid, config)[1]]
    for bucket in sorted(buckets, key=lambda b: (b.rows * b.length, b.length)):
        images = _first_fit(sizes, bucket.length, bucket.rows)
        if images is None:
            continue
        if bucket.length <= config.window_patches:
            return _Plan(bucket, images, None)
        windows = _first_fit(windows_of_images, config.window_patches, bucket.windows)
        if windows is not None:
            return _Plan(bucket, images, windows)
    raise ValueError(
        f"{len(grids)} images of {sum(sizes)} patches (largest {max(sizes, default=0)}) fit none of the image "
        f"buckets {list(buckets)}; add a larger bucket or lower image.max_pixels"
    )


def fits(grids: Sequence[Grid], buckets: Sequence[VisionBucket], config: VisionConfig) -> bool:
    """Tests if one of the buckets holds images of these grids together."""
    try:
        _plan(grids, buckets, config)
    except ValueError:
        return False
    return True


def _grid_window_order(grid: Grid, config: VisionConfig):
    return _window_order(
        grid[1],
        grid[2],
        config.spatial_merge_size,
        config.window_size // config.patch_size // config.spatial_merge_size,
    )


def _first_frame(patches: np.ndarray, config: VisionConfig) -> np.ndarray:
    frames = patches.reshape(-1, config.in_channels, config.temporal_patch_size, config.patch_size**2)
    if not all(np.array_equal(frames[:, :, 0], frames[:, :, i]) for i in range(1, config.temporal_patch_size)):
        raise ValueError("patches hold two different frames: videos are not supported")
    return frames[:, :, 0].reshape(len(patches), -1)


def vision_batch(images: Sequence[ImagePatches], buckets: Sequence[VisionBucket], config: VisionConfig) -> VisionBatch:
    """Packs images into the smallest bucket that holds them.

    Placeholder k of image i reads row `sum(num_image_tokens of images before i) + k` of the encoded batch.
    Raises ValueError if no bucket fits, or if an image's patches and grid disagree.
    """
    for patches, grid in images:
        if patches.shape != (num_image_tokens(grid, config) * config.spatial_merge_size**2, config.patch_dim):
            raise ValueError(f"patches of shape {patches.shape} do not match grid {grid}")
    plan = _plan([grid for _, grid in images], buckets, config)
    rows, length = plan.bucket.rows, plan.bucket.length
    unit = config.spatial_merge_size**2
    if length % unit:
        raise ValueError(f"bucket length {length} must be a multiple of {unit} patches")
    half = config.patch_dim // config.temporal_patch_size
    patches_out = np.zeros((rows * length, half), np.float32)
    coordinates = np.zeros((rows * length, 2), np.int32)
    image_segments = np.zeros(rows * length, np.int32)
    num_tokens = rows * length // unit
    merge_index = np.full(num_tokens, num_tokens, np.int32)
    merge_index_inv = np.full(num_tokens, num_tokens, np.int32)

    windows_in_rows = plan.windows is None
    window_rows = rows if windows_in_rows else plan.bucket.windows
    window_length = length if windows_in_rows else config.window_patches
    window_segments = np.zeros(window_rows * window_length, np.int32)
    window_index = np.full(window_rows * window_length, rows * length, np.int32)
    window_index_inv = np.full(rows * length, window_rows * window_length, np.int32)

    token = 0
    window = 0
    for number, ((patches, grid), (row, offset)) in enumerate(zip(images, plan.images, strict=True)):
        order, window_sizes, patch_coordinates = _grid_window_order(grid, config)
        start, count = row * length + offset, len(patches)
        frame = _first_frame(patches, config).reshape(-1, unit, half)
        patches_out[start : start + count] = frame[order].reshape(count, half)
        coordinates[start : start + count] = patch_coordinates
        image_segments[start : start + count] = number + 1
        tokens = start // unit + np.arange(len(order), dtype=np.int32)
        merge_index[token + order] = tokens
        merge_index_inv[tokens] = token + order
        token += len(order)
        for size in window_sizes:
            if windows_in_rows:
                slot = start
            else:
                window_row, window_offset = plan.windows[window]
                slot = window_row * window_length + window_offset
                window_index[slot : slot + size] = np.arange(start, start + size)
                window_index_inv[start : start + size] = np.arange(slot, slot + size)
            window_segments[slot : slot + size] = window + 1
            window += 1
            start += size

    return VisionBatch(
        patches=patches_out.reshape(rows, length, half),
        coordinates=coordinates.reshape(rows, length, 2),
        image_segments=image_segments.reshape(rows, length),
        window_segments=window_segments.reshape(window_rows, window_length),
        window_index=None if windows_in_rows else window_index.reshape(window_rows, window_length),
        window_index_inv=None if windows_in_rows else window_index_inv,
        merge_index=merge_index,
        merge_index_inv=merge_index_inv,
    )
