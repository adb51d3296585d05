"""The patch grid of an image, its number of tokens, and the normalization of pixels. This module does not import JAX."""

from __future__ import annotations

from dv2_jax.model.model_config import VisionConfig

# Statistics of CLIP's training data, which Qwen2.5-VL keeps (preprocessor_config.json).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

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
