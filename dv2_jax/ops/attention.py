"""Attention within segments: packed rows of text (causal), pictures and windows (not causal).

A segment id of 0 is padding; padding attends to padding, so no row of scores is ever empty.

Forms of the same function, all with scores, softmax and sums in fp32:
- ``tiled``: loops over tiles, skipping those that no segment touches (a CPU);
- ``blocked``: unrolled blocks of queries, all rows at once (a GPU, and rows too short to tile);
- ``splash``: the Pallas kernel (a TPU).
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.ops import attention_blocked, attention_splash, attention_tiled
from dv2_jax.ops.attention_sharding import on_own_rows_and_heads

Backend = Literal["auto", "tiled", "blocked", "splash"]


def causal_segment_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B T H hd"]:
    """Token t sees the tokens of its own segment up to itself, in row order. H is a multiple of K."""
    return _attention(q, k, v, segment_ids, causal=True, backend=backend)


def segment_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segment_ids: Int[Array, "B T"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B T H hd"]:
    """Every token sees all tokens of its own segment."""
    return _attention(q, k, v, segment_ids, causal=False, backend=backend)


def _attention(q, k, v, segment_ids, *, causal, backend):
    if backend == "splash" or (backend == "auto" and attention_splash.available(q.shape[1])):
        return attention_splash.attention(q, k, v, segment_ids, causal=causal)
    local = functools.partial(_local, (causal, backend))
    return on_own_rows_and_heads(local, q, k, v, segment_ids, causal=causal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(form: tuple[bool, Backend], q: Array, k: Array, v: Array, segments: Array) -> Array:
    """q [B T H hd], k and v [B T K hd] -> [B T H hd], in the form for the platform it is lowered for.

    The backward pass recomputes probabilities from the row-wise normalizer (Dao et al., arXiv:2205.14135).
    """
    return _forward(form, q, k, v, segments)[0]


def _choose(form: tuple[bool, Backend], name: str, tokens: int, *operands):
    causal, backend = form
    tiled = functools.partial(getattr(attention_tiled, name), causal)
    blocked = functools.partial(getattr(attention_blocked, name), causal)
    if backend == "tiled":
        return tiled(*operands)
    if backend == "blocked" or tokens <= attention_tiled.TILE:
        return blocked(*operands)
    return jax.lax.platform_dependent(*operands, cpu=tiled, default=blocked)


def _forward(form, q, k, v, segments):
    out, normalizer = _choose(form, "forward", q.shape[1], q, k, v, segments)
    return out, (q, k, v, segments, out, normalizer)


def _backward(form, saved, gradient):
    q, k, v, segments, out, normalizer = saved
    delta = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)
    gradients = _choose(form, "backward", q.shape[1], q, k, v, segments, gradient, normalizer, delta)
    return *gradients, np.zeros(segments.shape, jax.dtypes.float0)


_local.defvjp(_forward, _backward)
