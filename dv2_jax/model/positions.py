"""M-RoPE positions of a token sequence with pictures (numpy, on the host)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.vision_inputs import Grid, merged_tokens


def mrope_positions(
    token_ids: Sequence[int] | Int[np.ndarray, "T"],
    grids: Sequence[Grid],
    config: ModelConfig,
    *,
    start: int = 0,
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """(time, height, width) positions, and the position of the token that follows.

    Text counts up in all three. A picture keeps the time of its first placeholder while height and width run over
    its grid of merged tokens; the text after it continues past the larger side. Pass the returned position as
    ``start`` to continue a sequence with an appended piece: pieces give the same positions as the whole.
    Raises ValueError when placeholders and grids do not match, and for a video's placeholders.
    """
    ids = np.asarray(token_ids)
    if (ids == config.video_token_id).any():
        raise ValueError(f"token {config.video_token_id} stands for a video; only still pictures are supported")
    positions = np.empty((3, len(ids)), np.int32)
    merge = config.vision.spatial_merge_size
    placeholders = ids == config.image_token_id
    at, position = 0, start
    for number, grid in enumerate(grids):
        remaining = np.flatnonzero(placeholders[at:])
        count = merged_tokens(grid, config.vision)
        if not remaining.size:
            raise ValueError(f"{len(grids)} pictures but placeholders for {number}")
        text = int(remaining[0])
        if not placeholders[at + text : at + text + count].all() or at + text + count > len(ids):
            raise ValueError(f"picture {number} of grid {grid} needs {count} placeholders in a row")
        positions[:, at : at + text] = position + np.arange(text)
        at, position = at + text, position + text
        height, width = grid[1] // merge, grid[2] // merge
        picture = positions[:, at : at + count].reshape(3, height, width)
        picture[0] = position
        picture[1] = position + np.arange(height)[:, None]
        picture[2] = position + np.arange(width)[None, :]
        positions[:, at : at + count] = picture.reshape(3, count)
        at, position = at + count, position + max(height, width)
    if placeholders[at:].any():
        raise ValueError(f"{int(placeholders[at:].sum())} image placeholders beyond the {len(grids)} pictures")
    text = len(ids) - at
    positions[:, at:] = position + np.arange(text)
    return positions, position + text
