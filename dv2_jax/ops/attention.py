"""Attention within segments: packed rows of text (causal), pictures and windows (not causal).

A segment id of 0 is padding; padding attends to padding, so no row of scores is ever empty.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Backend = Literal["auto", "xla"]

# Queries per block of the XLA form. Causal blocks score only their own prefix, so small blocks skip up to half
# of the work; below 128 the CPU's matrix product gets slower than what they save.
QUERY_BLOCK = 128
# No more blocks than this in one program: the loop over blocks is unrolled.
MAX_BLOCKS = 16
# Scores and probabilities above this many numbers are recomputed in the backward pass, block by block.
STORED_SCORES = 2**26


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
    return _xla(q, k, v, segment_ids, causal=causal)


def _xla(q, k, v, segment_ids, *, causal):
    batch, tokens, heads, dim = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, tokens, k.shape[2], groups, dim) * dim**-0.5
    size = max(QUERY_BLOCK, -(-tokens // MAX_BLOCKS))

    def block(q, k, v, query_segments, key_segments, start):
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
        seen = query_segments[:, :, None] == key_segments[:, None, :]
        if causal:
            seen &= (start + jnp.arange(q.shape[1]))[:, None] >= jnp.arange(k.shape[1])[None, :]
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    if batch * heads * tokens * tokens > STORED_SCORES:
        block = jax.checkpoint(block, static_argnums=(5,))
    outputs = []
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        seen = end if causal else tokens
        outputs.append(
            block(q[:, start:end], k[:, :seen], v[:, :seen], segment_ids[:, start:end], segment_ids[:, :seen], start)
        )
    return jnp.concatenate(outputs, axis=1).reshape(batch, tokens, heads, dim)
