"""Segment attention tile by tile, for a CPU: every tile's scores stay in cache, and tiles between which no
segment is shared are skipped (a row packed with four trajectories costs a quarter of one that is full).

Layouts as in ``attention_blocked``. The loops are data dependent, which a CPU runs as they are; one
program serves every packing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

TILE = 128  # queries and keys; 64 costs more operations, 256 computes more of what the causal mask hides
LOWEST = float(np.finfo(np.float32).min)


class _Tiles(NamedTuple):
    """The operands cut into N = B * n tiles of t tokens."""

    q: Float[Array, "N K G t hd"]
    k: Float[Array, "N K t hd"]
    v: Float[Array, "N K t hd"]
    segments: Int[Array, "N t"]
    first: Int[Array, "N"]  # first key tile that a query tile needs, counted in its own row
    end: Int[Array, "N"]


def _cut(x: Shaped[Array, "B ... T hd"]) -> Shaped[Array, "N ... t hd"]:
    """Pad the tokens to whole tiles and bring the tiles to the front."""
    tokens = x.shape[-2]
    pad = [(0, 0)] * x.ndim
    pad[-2] = (0, -tokens % TILE)
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:-2], -1, TILE, x.shape[-1])
    x = jnp.moveaxis(x, -3, 1)
    return x.reshape(-1, *x.shape[2:])


def _join(x: Float[Array, "N ... t hd"], batch: int, tokens: int) -> Float[Array, "B ... T hd"]:
    x = x.reshape(batch, -1, *x.shape[1:])
    x = jnp.moveaxis(x, 1, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :tokens, :]


def _tiles(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> _Tiles:
    batch = q.shape[0]
    cut_segments = _cut(segments[..., None] + 1)[..., 0] - 1  # tokens that fill the last tile: -1, seen by none
    # Padding counts as the last segment: then ids rise along a packed row and the ranges of tiles are tight.
    ordered = jnp.where(cut_segments <= 0, jnp.iinfo(jnp.int32).max, cut_segments).reshape(batch, -1, TILE)
    low, high = ordered.min(-1), ordered.max(-1)
    shared = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    count = shared.shape[1]
    if causal:
        shared &= np.tril(np.ones((count, count), bool))
    first = jnp.argmax(shared, axis=-1).astype(jnp.int32)
    end = (count - jnp.argmax(shared[:, :, ::-1], axis=-1)).astype(jnp.int32)
    return _Tiles(_cut(q), _cut(k), _cut(v), cut_segments, first.reshape(-1), end.reshape(-1))


def _scores(causal: bool, tiles: _Tiles, q: Array, query: Array, key: Array) -> Float[Array, "K G t s"]:
    """Masked scores of one query tile and one key tile (both counted over all rows)."""
    heads, groups, size, dim = q.shape
    scores = jnp.matmul(
        q.reshape(heads, groups * size, dim), tiles.k[key].swapaxes(-1, -2), preferred_element_type=jnp.float32
    )
    allowed = tiles.segments[query][:, None] == tiles.segments[key][None, :]
    if causal:
        allowed &= (query - key) * size + np.arange(size)[:, None] >= np.arange(size)
    return scores.reshape(heads, groups, size, size) + jnp.where(allowed, 0.0, LOWEST)


def _row_start(tile: Array, tiles: _Tiles, batch: int) -> Array:
    count = tiles.first.shape[0] // batch
    return tile // count * count


def forward(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, Array]:
    batch, heads, groups, tokens, dim = q.shape
    tiles = _tiles(causal, q, k, v, segments)
    flat = (heads, groups * TILE, TILE)

    def one(query: Array) -> tuple[Array, Array]:
        mine, start = tiles.q[query], _row_start(query, tiles, batch)

        def step(key, state):
            top, total, mixed = state
            scores = _scores(causal, tiles, mine, query, start + key)
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            p, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            product = jnp.matmul(
                p.reshape(flat).astype(v.dtype), tiles.v[start + key], preferred_element_type=jnp.float32
            )
            return new_top, total * shrink + p.sum(-1, keepdims=True), mixed * shrink + product.reshape(mixed.shape)

        column = (heads, groups, TILE, 1)
        empty = (jnp.full(column, LOWEST), jnp.zeros(column), jnp.zeros((heads, groups, TILE, dim)))
        top, total, mixed = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, empty)
        return (mixed / total).astype(q.dtype), top + jnp.log(total)

    out, normaliser = jax.lax.map(one, jnp.arange(tiles.first.shape[0]))
    return _join(out, batch, tokens), _join(normaliser, batch, tokens)


def backward(
    causal: bool, q: Array, k: Array, v: Array, segments: Array, gradient: Array, normaliser: Array, delta: Array
) -> tuple[Array, Array, Array]:
    batch, heads, groups, tokens, dim = q.shape
    tiles = _tiles(causal, q, k, v, segments)
    flat, thin = (heads, groups * TILE, TILE), (heads, groups * TILE, dim)
    f32 = jnp.float32

    def one(sums: tuple[Array, Array], xs) -> tuple[tuple[Array, Array], Array]:
        query, mine, gradient, normaliser, delta = xs
        start = _row_start(query, tiles, batch)
        upstream = gradient.reshape(thin)

        def step(key, sums):
            dk, dv, dq = sums
            key = start + key
            p = jnp.exp(_scores(causal, tiles, mine, query, key) - normaliser)
            dp = jnp.matmul(upstream, tiles.v[key].swapaxes(-1, -2), preferred_element_type=f32)
            ds = (p * (dp.reshape(p.shape) - delta)).reshape(flat).astype(k.dtype)
            p = p.reshape(flat).astype(v.dtype)
            dv = dv.at[key].add(jnp.matmul(p.swapaxes(-1, -2), upstream, preferred_element_type=f32))
            dk = dk.at[key].add(jnp.matmul(ds.swapaxes(-1, -2), mine.reshape(thin), preferred_element_type=f32))
            return dk, dv, dq + jnp.matmul(ds, tiles.k[key], preferred_element_type=f32)

        dk, dv, dq = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, (*sums, jnp.zeros(thin, f32)))
        return (dk, dv), dq.reshape(mine.shape).astype(q.dtype)

    zeros = jnp.zeros(tiles.k.shape, f32)
    numbers = jnp.arange(tiles.first.shape[0])
    (dk, dv), dq = jax.lax.scan(one, (zeros, zeros), (numbers, tiles.q, _cut(gradient), _cut(normaliser), _cut(delta)))
    join = lambda x, like: _join(x, batch, tokens).astype(like.dtype)  # noqa: E731
    return join(dq, q), join(dk, k), join(dv, v)
