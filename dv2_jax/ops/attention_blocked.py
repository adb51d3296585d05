"""Segment attention in unrolled blocks of queries, all rows at once.

q is [B K G T hd] and already scaled, k and v are [B K T hd]; the normaliser is the log of the softmax's
denominator [B K G T 1]. A causal block scores only its own prefix.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dv2_jax.ops.recompute import after
from dv2_jax.parallel.mesh import traced_platform

BLOCK = 128  # queries
MAX_BLOCKS = 32  # the loop is unrolled: more blocks cost compile time, fewer cost memory


def _blocks(tokens: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, end of queries, end of keys) of every block."""
    size = max(BLOCK, -(-tokens // MAX_BLOCKS))
    ends = [min(start + size, tokens) for start in range(0, tokens, size)]
    return [(start, end, end if causal else tokens) for start, end in zip(range(0, tokens, size), ends, strict=True)]


def _scores(
    causal: bool, q: Float[Array, "B K G T hd"], k: Float[Array, "B K T hd"], segments: Int[Array, "B T"], block
) -> Float[Array, "B K G t s"]:
    start, end, seen = block
    allowed = segments[:, start:end, None] == segments[:, None, :seen]
    if causal:
        allowed &= np.arange(start, end)[:, None] >= np.arange(seen)
    bias = jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min)
    scores = jnp.einsum("bkgtd,bksd->bkgts", q[:, :, :, start:end], k[:, :, :seen], preferred_element_type=jnp.float32)
    return scores + bias[:, None, None]


def forward(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, Array]:
    outputs, normalisers = [], []
    for block in _blocks(q.shape[3], causal):
        scores = _scores(causal, q, k, segments, block)
        top = scores.max(-1, keepdims=True)
        p = jnp.exp(scores - top)
        total = p.sum(-1, keepdims=True)
        out = jnp.einsum(
            "bkgts,bksd->bkgtd", p.astype(v.dtype), v[:, :, : block[2]], preferred_element_type=jnp.float32
        )
        outputs.append((out / total).astype(q.dtype))
        normalisers.append(top + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(normalisers, axis=3)


def backward(
    causal: bool, q: Array, k: Array, v: Array, segments: Array, gradient: Array, normaliser: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """``delta`` is the sum over hd of gradient times output [B K G T 1]."""
    if traced_platform() == "cpu":
        q = after(q, gradient)  # else its compiler scores all blocks of a short row before the gradient is there
    dq = []
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block in _blocks(q.shape[3], causal):
        start, end, seen = block
        queries, keys = np.s_[:, :, :, start:end], np.s_[:, :, :seen]
        p = jnp.exp(_scores(causal, q, k, segments, block) - normaliser[queries])
        dp = jnp.einsum("bkgtd,bksd->bkgts", gradient[queries], v[keys], preferred_element_type=jnp.float32)
        ds = (p * (dp - delta[queries])).astype(k.dtype)
        dq.append(jnp.einsum("bkgts,bksd->bkgtd", ds, k[keys]))
        dk = dk.at[keys].add(jnp.einsum("bkgts,bkgtd->bksd", ds, q[queries], preferred_element_type=jnp.float32))
        dv = dv.at[keys].add(
            jnp.einsum("bkgts,bkgtd->bksd", p.astype(v.dtype), gradient[queries], preferred_element_type=jnp.float32)
        )
    return jnp.concatenate(dq, axis=3), dk.astype(k.dtype), dv.astype(v.dtype)
