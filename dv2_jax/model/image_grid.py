"""Counts the tokens of an image from its patch grid. This module does not import JAX."""

from __future__ import annotations

from dv2_jax.model.model_config import VisionConfig

Grid = tuple[int, int, int]  # frames, rows of patches, columns of patches


def num_image_tokens(grid: Grid, config: VisionConfig | None = None) -> int:
    """Returns the number of image tokens (placeholders) of an image. The only place where they are counted.

    Raises ValueError for a grid of several frames, or of rows or columns that `spatial_merge_size` does not divide.
    """
    frames, height, width = grid
    merge = 2 if config is None else config.spatial_merge_size
    if frames != 1:
        raise ValueError(f"grid {grid}: only still images (one temporal patch) are supported")
    if height % merge or width % merge or height < merge or width < merge:
        raise ValueError(f"grid {grid}: rows and columns of patches must be multiples of {merge}")
    return height * width // merge**2
