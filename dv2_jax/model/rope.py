"""Rotary position embeddings (RoPE, M-RoPE). Angles, sines and the rotation are fp32 for every compute dtype:
a bf16 angle is off by a quarter of a radian at column 128."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RotaryEmbedding = tuple[Float[Array, "... half"], Float[Array, "... half"]]  # (cos, sin), half = head_dim / 2


def _frequencies(theta: float, dim: int) -> Float[np.ndarray, "half"]:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def _cos_sin(angles: Float[Array, "... half"]) -> RotaryEmbedding:
    return jax.lax.platform_dependent(angles, cpu=_cos_sin_no_fusion, default=lambda x: (jnp.cos(x), jnp.sin(x)))


def _cos_sin_no_fusion(angles: Float[Array, "... half"]) -> RotaryEmbedding:
    """Computes cos and sin inside a `lax.map`, so that XLA:CPU cannot fuse and recompute them in every consumer
    (each layer, head and use)."""
    cos, sin = jax.lax.map(lambda index: jax.lax.switch(index, (jnp.cos, jnp.sin), angles), jnp.arange(2))
    return cos, sin


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
    return _cos_sin(angles)


def vision_cos_sin(coordinates: Int[Array, "... 2"], *, head_dim: int, theta: float = 1e4) -> RotaryEmbedding:
    """Returns the vision tower's cos and sin [... head_dim/2]: half of the frequencies use the row, half the column."""
    frequencies = _frequencies(theta, head_dim // 2)
    angles = (coordinates[..., None].astype(jnp.float32) * frequencies).reshape(*coordinates.shape[:-1], -1)
    return _cos_sin(angles)


def apply_rope(x: Float[Array, "... T H hd"], rope: RotaryEmbedding) -> Float[Array, "... T H hd"]:
    """Applies RoPE: rotates the pairs (i, i + hd/2) of every head."""
    cos, sin = rope[0][..., None, :], rope[1][..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
