"""M-RoPE positions of a token sequence with images (numpy, on the host)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dv2_jax.model.image_grid import Grid, num_image_tokens
from dv2_jax.model.model_config import ModelConfig


def mrope_positions(
    token_ids: Sequence[int] | Int[np.ndarray, "T"],
    grids: Sequence[Grid],
    config: ModelConfig,
    *,
    start: int = 0,
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """Returns (time, height, width) positions, and the position of the next token.

    Text advances all three. An image keeps the time of its first placeholder while height and width enumerate its grid
    of image tokens; the text after it continues past the larger side. Pass the returned position as `start` to continue
    a sequence: positions of the parts equal those of the concatenation.
    Raises ValueError if placeholders and grids do not match, or if `token_ids` has video placeholders.
    """
    ids = np.asarray(token_ids)
    if (ids == config.video_token_id).any():
        raise ValueError(f"token {config.video_token_id} stands for a video; only still images are supported")
    positions = np.empty((3, len(ids)), np.int32)
    merge = config.vision.spatial_merge_size
    placeholders = ids == config.image_token_id
    at = 0
    position = start
    for number, grid in enumerate(grids):
        remaining = np.flatnonzero(placeholders[at:])
        count = num_image_tokens(grid, config.vision)
        if not remaining.size:
            raise ValueError(f"{len(grids)} images but placeholders for {number}")
        text = int(remaining[0])
        if not placeholders[at + text : at + text + count].all() or at + text + count > len(ids):
            raise ValueError(f"image {number} of grid {grid} needs {count} placeholders in a row")
        positions[:, at : at + text] = position + np.arange(text)
        at += text
        position += text
        height, width = grid[1] // merge, grid[2] // merge
        image = positions[:, at : at + count].reshape(3, height, width)
        image[0] = position
        image[1] = position + np.arange(height)[:, None]
        image[2] = position + np.arange(width)[None, :]
        positions[:, at : at + count] = image.reshape(3, count)
        at += count
        position += max(height, width)
    if placeholders[at:].any():
        raise ValueError(f"{int(placeholders[at:].sum())} image placeholders beyond the {len(grids)} images")
    text = len(ids) - at
    positions[:, at:] = position + np.arange(text)
    return positions, position + text
