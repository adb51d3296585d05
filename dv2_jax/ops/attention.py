"""Attention within segments: packed rows of text (causal), images and windows (full).

A segment id of 0 is padding; padding attends to padding, so no row of scores is ever empty.

Backends of the same function, all with scores, softmax and sums in fp32:
- `tiled`: loops over tiles and skips those without a common segment (CPU);
- `blocked`: unrolled blocks of queries, all rows at once (GPU, and rows too short to tile);
- `splash`: the Pallas kernel (TPU).
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.ops import attention_blocked, attention_splash, attention_tiled
from dv2_jax.ops.attention_sharding import shard_attention

Backend = Literal["auto", "tiled", "blocked", "splash"]


def causal_segment_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B T H hd"]:
    """Computes causal attention within segments: token t attends to its segment's tokens up to t.

    H is a multiple of K (grouped-query attention).
    """
    return _attention(q, k, v, segment_ids, causal=True, backend=backend)


def segment_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B T H hd"]:
    """Computes full attention within segments: every token attends to all tokens of its segment."""
    return _attention(q, k, v, segment_ids, causal=False, backend=backend)


def _attention(q, k, v, segment_ids, *, causal, backend):
    if backend == "splash" or (backend == "auto" and attention_splash.available(q.shape[1])):
        return attention_splash.attention(q, k, v, segment_ids, causal=causal)
    local = functools.partial(_local, (causal, backend))
    return shard_attention(local, q, k, v, segment_ids, causal=causal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(setup: tuple[bool, Backend], q: Array, k: Array, v: Array, segments: Array) -> Array:
    """Attention of q [B T H hd], k and v [B T K hd] -> [B T H hd] on one shard, by the backend of the lowering platform.

    The backward pass recomputes probabilities from the rows' log-sum-exp (FlashAttention, Dao et al., arXiv:2205.14135).
    """
    return _forward(setup, q, k, v, segments)[0]


def _dispatch(setup: tuple[bool, Backend], name: str, tokens: int, *operands):
    causal, backend = setup
    tiled = functools.partial(getattr(attention_tiled, name), causal)
    blocked = functools.partial(getattr(attention_blocked, name), causal)
    if backend == "tiled":
        return tiled(*operands)
    if backend == "blocked" or tokens <= attention_tiled.TILE:
        return blocked(*operands)
    return jax.lax.platform_dependent(*operands, cpu=tiled, default=blocked)


def _forward(setup, q, k, v, segments):
    out, lse = _dispatch(setup, "forward", q.shape[1], q, k, v, segments)
    return out, (q, k, v, segments, out, lse)


def _backward(setup, saved, gradient):
    q, k, v, segments, out, lse = saved
    delta = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)
    gradients = _dispatch(setup, "backward", q.shape[1], q, k, v, segments, gradient, lse, delta)
    return *gradients, np.zeros(segments.shape, jax.dtypes.float0)


_local.defvjp(_forward, _backward)
