"""Rotation by RoPE angles. Angles, sines and the rotation are fp32 for every compute dtype: a bf16 angle is off by a
quarter of a radian at column 128."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RotaryEmbedding = tuple[Float[Array, "... half"], Float[Array, "... half"]]  # (cos, sin), half = head_dim / 2


def cos_sin(angles: Float[Array, "... half"]) -> RotaryEmbedding:
    """Returns the cosines and sines of the angles, computed once and used by every layer."""
    return jax.lax.platform_dependent(angles, cpu=_cos_sin_no_fusion, default=lambda x: (jnp.cos(x), jnp.sin(x)))


def _cos_sin_no_fusion(angles: Float[Array, "... half"]) -> RotaryEmbedding:
    """Computes cos and sin inside a `lax.map`, so that XLA:CPU cannot fuse and recompute them in every consumer
    (each layer, head and use)."""
    cos, sin = jax.lax.map(lambda index: jax.lax.switch(index, (jnp.cos, jnp.sin), angles), jnp.arange(2))
    return cos, sin


def apply_rope(x: Float[Array, "... T H hd"], rope: RotaryEmbedding) -> Float[Array, "... T H hd"]:
    """Applies RoPE: rotates the pairs (i, i + hd/2) of every head."""
    cos, sin = rope[0][..., None, :], rope[1][..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
