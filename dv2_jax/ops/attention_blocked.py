"""Segment attention in unrolled blocks of queries, all rows at once. A causal block scores only its prefix of keys."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dv2_jax.ops.remat import depend_on
from dv2_jax.parallel.mesh import traced_platform

BLOCK = 128  # queries per block
MAX_BLOCKS = 32  # the loop is unrolled: more blocks cost compile time, fewer cost memory


def _blocks(tokens: int, causal: bool) -> list[tuple[int, int, int]]:
    """Returns (first query, end of queries, end of keys) of every block."""
    size = max(BLOCK, -(-tokens // MAX_BLOCKS))
    ends = [min(start + size, tokens) for start in range(0, tokens, size)]
    return [(start, end, end if causal else tokens) for start, end in zip(range(0, tokens, size), ends, strict=True)]


def _scores(
    causal: bool, q: Float[Array, "B K G T hd"], k: Float[Array, "B K T hd"], segments: Int[Array, "B T"], block
) -> Float[Array, "B K G t s"]:
    start, end, kv_len = block
    allowed = segments[:, start:end, None] == segments[:, None, :kv_len]
    if causal:
        allowed &= np.arange(start, end)[:, None] >= np.arange(kv_len)
    bias = jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min)
    scores = jnp.einsum(
        "bkgtd,bksd->bkgts", q[:, :, :, start:end], k[:, :, :kv_len], preferred_element_type=jnp.float32
    )
    return scores + bias[:, None, None]


def _grouped(x: Shaped[Array, "B T H n"], kv_heads: int) -> Shaped[Array, "B K G T n"]:
    """Groups query heads by the key/value head that they share."""
    batch, tokens, heads, size = x.shape
    return x.reshape(batch, tokens, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)


def _ungrouped(x: Shaped[Array, "B K G T n"]) -> Shaped[Array, "B T H n"]:
    batch, kv_heads, groups, tokens, size = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, kv_heads * groups, size)


def _operands(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Returns scaled queries [B K G T hd], and keys and values [B K T hd]."""
    return _grouped(q, k.shape[2]) * q.shape[-1] ** -0.5, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def forward(
    causal: bool,
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segments: Int[Array, "B T"],
) -> tuple[Float[Array, "B T H hd"], Float[Array, "B T H"]]:
    """Returns the output and the rows' log-sum-exp in fp32."""
    q, k, v = _operands(q, k, v)
    outputs, lses = [], []
    for block in _blocks(q.shape[3], causal):
        scores = _scores(causal, q, k, segments, block)
        row_max = scores.max(-1, keepdims=True)
        p = jnp.exp(scores - row_max)
        row_sum = p.sum(-1, keepdims=True)
        out = jnp.einsum(
            "bkgts,bksd->bkgtd", p.astype(v.dtype), v[:, :, : block[2]], preferred_element_type=jnp.float32
        )
        outputs.append((out / row_sum).astype(q.dtype))
        lses.append(row_max + jnp.log(row_sum))
    out, lse = (_ungrouped(jnp.concatenate(blocks, axis=3)) for blocks in (outputs, lses))
    return out, lse[..., 0]


def backward(
    causal: bool,
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B T K hd"],
    v: Float[Array, "B T K hd"],
    segments: Int[Array, "B T"],
    gradient: Float[Array, "B T H hd"],
    lse: Float[Array, "B T H"],
    delta: Float[Array, "B T H"],
) -> tuple[Float[Array, "B T H hd"], Float[Array, "B T K hd"], Float[Array, "B T K hd"]]:
    """Returns the gradients of q, k and v. `delta` is the sum over hd of gradient times output, in fp32."""
    gradient, lse, delta = (_grouped(x, k.shape[2]) for x in (gradient, lse[..., None], delta[..., None]))
    q, k, v = _operands(q, k, v)
    if traced_platform() == "cpu":
        q = depend_on(q, gradient)  # else XLA:CPU computes all blocks' scores before the gradient exists
    dq = []
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block in _blocks(q.shape[3], causal):
        start, end, kv_len = block
        queries, keys = np.s_[:, :, :, start:end], np.s_[:, :, :kv_len]
        p = jnp.exp(_scores(causal, q, k, segments, block) - lse[queries])
        dp = jnp.einsum("bkgtd,bksd->bkgts", gradient[queries], v[keys], preferred_element_type=jnp.float32)
        ds = (p * (dp - delta[queries])).astype(k.dtype)
        dq.append(jnp.einsum("bkgts,bksd->bkgtd", ds, k[keys]))
        dk = dk.at[keys].add(jnp.einsum("bkgts,bkgtd->bksd", ds, q[queries], preferred_element_type=jnp.float32))
        dv = dv.at[keys].add(
            jnp.einsum("bkgts,bkgtd->bksd", p.astype(v.dtype), gradient[queries], preferred_element_type=jnp.float32)
        )
    dq = _ungrouped(jnp.concatenate(dq, axis=3)) * q.shape[-1] ** -0.5
    return dq, *(x.astype(k.dtype).transpose(0, 2, 1, 3) for x in (dk, dv))
