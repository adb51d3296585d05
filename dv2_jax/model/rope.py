"""Angles of rotary position embeddings: M-RoPE of the text tower, rows and columns of the vision tower."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.ops.rotary import RotaryEmbedding, cos_sin


def _frequencies(theta: float, dim: int) -> Float[np.ndarray, "half"]:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def mrope_cos_sin(
    positions: Int[Array, "3 B T"], *, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> RotaryEmbedding:
    """Returns M-RoPE cos and sin [B T head_dim/2].

    `sections` splits the frequencies: the first rotate by the time position, then height, then width.
    """
    component = np.repeat(np.arange(3), sections)
    frequencies = _frequencies(theta, head_dim)
    # [B T half]: each frequency uses one of the three position components.
    angles = jnp.moveaxis(positions, 0, -1)[..., component].astype(jnp.float32) * frequencies
    return cos_sin(angles)


def vision_cos_sin(coordinates: Int[Array, "... 2"], *, head_dim: int, theta: float = 1e4) -> RotaryEmbedding:
    """Returns the vision tower's cos and sin [... head_dim/2]: half of the frequencies use the row, half the column."""
    frequencies = _frequencies(theta, head_dim // 2)
    angles = (coordinates[..., None].astype(jnp.float32) * frequencies).reshape(*coordinates.shape[:-1], -1)
    return cos_sin(angles)
