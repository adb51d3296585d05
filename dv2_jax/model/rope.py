"""Rotary position embeddings. Angles, sines and the turn itself are fp32 whatever the compute dtype is:
a bf16 angle is off by a quarter of a radian at column 128."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Turn = tuple[Float[Array, "... half"], Float[Array, "... half"]]  # cosines and sines, half = head_dim / 2


def _frequencies(theta: float, dim: int) -> Float[np.ndarray, "half"]:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def _turn(angles: Float[Array, "... half"]) -> Turn:
    return jax.lax.platform_dependent(angles, cpu=_once, default=lambda x: (jnp.cos(x), jnp.sin(x)))


def _once(angles: Float[Array, "... half"]) -> Turn:
    """In a loop, from which XLA's CPU compiler cannot take them to work them out anew for every layer, head and use."""
    cos, sin = jax.lax.map(lambda index: jax.lax.switch(index, (jnp.cos, jnp.sin), angles), jnp.arange(2))
    return cos, sin


def mrope_turn(positions: Int[Array, "3 B T"], *, head_dim: int, theta: float, sections: tuple[int, int, int]) -> Turn:
    """Cosines and sines [B T head_dim/2]: the first frequencies turn with time, then height, then width."""
    component = np.repeat(np.arange(3), sections)
    frequencies = _frequencies(theta, head_dim)
    # [B T half]: each frequency picks its own of the three positions.
    angles = jnp.moveaxis(positions, 0, -1)[..., component].astype(jnp.float32) * frequencies
    return _turn(angles)


def patch_turn(coordinates: Int[Array, "... 2"], *, head_dim: int, theta: float = 1e4) -> Turn:
    """Cosines and sines [... head_dim/2] of (row, column): half of the frequencies each."""
    frequencies = _frequencies(theta, head_dim // 2)
    angles = (coordinates[..., None].astype(jnp.float32) * frequencies).reshape(*coordinates.shape[:-1], -1)
    return _turn(angles)


def rotate(x: Float[Array, "... T H hd"], turn: Turn) -> Float[Array, "... T H hd"]:
    """Turn the pairs (i, i + hd/2) of every head."""
    cos, sin = turn[0][..., None, :], turn[1][..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
