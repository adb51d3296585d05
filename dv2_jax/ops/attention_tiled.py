"""Segment attention tile by tile, for a CPU: every tile's scores stay in cache, and tiles between which no
segment is shared are skipped (a row packed with four trajectories costs a quarter of one that is full).

Arguments and results are those of ``attention_blocked``. The loops are data dependent, which a CPU runs as they are; one
program serves every packing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dv2_jax.ops.remat import after

TILE = 128  # queries and keys where the mask is causal: larger ones compute more of what it hides
WIDE_TILE = 288  # keys where it is not, and larger ones only cost less, as long as one's scores stay in cache
WIDE_QUERIES = 2  # times as many queries: the keys, and their gradients, are taken out and put back less often
MULTIPLE = 16  # of a tile's size: numbers in a vector
LOWEST = float(np.finfo(np.float32).min)


class _Tiles(NamedTuple):
    """The operands cut into N = B * n tiles of t queries, and M = B * m of s keys. t = s where the mask is causal."""

    q: Float[Array, "N t K G hd"]
    k: Float[Array, "M s K hd"]
    v: Float[Array, "M s K hd"]
    key_columns: Float[Array, "M K hd s"]
    of_queries: Int[Array, "N t"]  # their segments
    of_keys: Int[Array, "M s"]
    first: Int[Array, "N"]  # first key tile that a query tile needs, counted in its own row
    end: Int[Array, "N"]
    row_start: Int[Array, "N"]  # the number of its row's first key tile


def _sizes(tokens: int, causal: bool) -> tuple[int, int]:
    """Queries and keys of a tile: as few tiles as may be, and all full but for a few tokens of the last one."""

    def size(largest: int) -> int:
        return -(-tokens // (-(-tokens // largest) * MULTIPLE)) * MULTIPLE

    return (size(TILE), size(TILE)) if causal else (size(WIDE_QUERIES * WIDE_TILE), size(WIDE_TILE))


def _cut(x: Shaped[Array, "B T ..."], tile: int) -> Shaped[Array, "N t ..."]:
    """Pad the tokens to whole tiles. Nothing moves: a tile's heads are brought to the front when it is taken out."""
    pad = [(0, 0), (0, -x.shape[1] % tile), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, pad).reshape(-1, tile, *x.shape[2:])


def _join(x: Shaped[Array, "N t ..."], batch: int, tokens: int) -> Shaped[Array, "B T ..."]:
    return x.reshape(batch, -1, *x.shape[2:])[:, :tokens]


def _tiles(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> _Tiles:
    batch, (queries, keys) = q.shape[0], _sizes(q.shape[1], causal)
    # Tokens that fill the last tile are of segment -1, and seen by none.
    of_queries, of_keys = (_cut(segments + 1, size) - 1 for size in (queries, keys))

    def ends(of: Array) -> tuple[Array, Array]:
        # Padding counts as the last segment: then ids rise along a packed row and the ranges of tiles are tight.
        ordered = jnp.where(of <= 0, jnp.iinfo(jnp.int32).max, of).reshape(batch, -1, of.shape[-1])
        return ordered.min(-1), ordered.max(-1)

    (low, high), (key_low, key_high) = ends(of_queries), ends(of_keys)
    shared = (low[:, :, None] <= key_high[:, None, :]) & (key_low[:, None, :] <= high[:, :, None])
    count, key_count = shared.shape[1:]
    if causal:
        shared &= np.tril(np.ones((count, count), bool))
    first = jnp.argmax(shared, axis=-1).astype(jnp.int32)
    end = (key_count - jnp.argmax(shared[:, :, ::-1], axis=-1)).astype(jnp.int32)
    row_start = jnp.asarray(np.repeat(np.arange(batch) * key_count, count), jnp.int32)
    k, v = _cut(k, keys), _cut(v, keys)
    columns = k.transpose(0, 2, 3, 1)
    q = _by_key_head(_cut(q, queries), k.shape[2])
    return _Tiles(q, k, v, columns, of_queries, of_keys, first.reshape(-1), end.reshape(-1), row_start)


def _by_key_head(x: Shaped[Array, "N t H ..."], heads: int) -> Shaped[Array, "N t K G ..."]:
    return x.reshape(*x.shape[:2], heads, -1, *x.shape[3:])


def _bias(causal: bool, tiles: _Tiles, query: Array, key: Array, *, keys_axis: int) -> Float[Array, "t s"]:
    """0 where a query of one tile may see a key of another (both tiles counted over all rows), else the lowest number.
    [s t] where ``keys_axis`` is 0."""
    of_queries, of_keys = tiles.of_queries[query], tiles.of_keys[key]
    allowed = jnp.expand_dims(of_queries, keys_axis) == jnp.expand_dims(of_keys, 1 - keys_axis)
    if causal:
        tile = tiles.of_keys.shape[1]
        place = np.arange(tile)
        allowed &= (query - key) * tile + np.expand_dims(place, keys_axis) >= np.expand_dims(place, 1 - keys_axis)
    return jnp.where(allowed, 0.0, LOWEST)


def forward(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, Array]:
    batch, tokens = q.shape[:2]
    tiles = _tiles(causal, q, k, v, segments)
    _, size, heads, groups, dim = tiles.q.shape
    keys = tiles.of_keys.shape[1]
    shape, thin = (heads, groups, size, keys), (heads, groups * size, dim)

    def one(places: Array, query: Array) -> tuple[Array, Array]:
        mine = (places[query] * dim**-0.5).transpose(1, 2, 0, 3).reshape(thin)
        start = tiles.row_start[query]

        def step(key, state):
            top, total, mixed = state
            key = start + key
            scores = _product(mine, tiles.key_columns[key]).reshape(shape)
            scores += _bias(causal, tiles, query, key, keys_axis=1)
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            p, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            product = _product(p.reshape(heads, -1, keys).astype(v.dtype), tiles.v[key].swapaxes(0, 1))
            return new_top, total * shrink + p.sum(-1, keepdims=True), mixed * shrink + product.reshape(mixed.shape)

        column = (heads, groups, size, 1)
        empty = (jnp.full(column, LOWEST), jnp.zeros(column), jnp.zeros((heads, groups, size, dim)))
        top, total, mixed = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, empty)
        out = (mixed / total).astype(q.dtype).transpose(2, 0, 1, 3)
        return places.at[query].set(out), (top + jnp.log(total))[..., 0].transpose(2, 0, 1)

    # Outputs take the places of their queries: no others have to be there from the program's start.
    out, normalizer = jax.lax.scan(one, tiles.q, jnp.arange(tiles.first.shape[0]))
    return _join(out, batch, tokens).reshape(q.shape), _join(normalizer, batch, tokens).reshape(q.shape[:3])


def backward(
    causal: bool, q: Array, k: Array, v: Array, segments: Array, gradient: Array, normalizer: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Probabilities stand with the keys first, [K s G t]: then no product has to transpose one, which XLA's CPU code
    takes twice as long for."""
    batch, tokens = q.shape[:2]
    tiles = _tiles(causal, q, k, v, segments)
    _, size, heads, groups, dim = tiles.q.shape
    keys = tiles.of_keys.shape[1]
    thin, row = (heads, groups * size, dim), (heads, 1, groups, size)
    shape, flat = (heads, keys, groups, size), (heads, keys, groups * size)
    scale = dim**-0.5

    def one(state: tuple[Array, Array, Array], xs) -> tuple[tuple[Array, Array, Array], None]:
        dk, dv, places = state
        query, mine, normalizer, delta = xs
        mine, upstream = (x.transpose(1, 2, 0, 3).reshape(thin) for x in (mine * scale, places[query]))
        normalizer, delta = (x.transpose(1, 2, 0).reshape(row) for x in (normalizer, delta))
        mine_columns, upstream_columns = mine.swapaxes(-1, -2), upstream.swapaxes(-1, -2)
        start = tiles.row_start[query]

        def step(key, sums):
            dk, dv, dq = sums
            key = start + key
            bias = _bias(causal, tiles, query, key, keys_axis=0)[:, None]
            p = jnp.exp(_product(tiles.k[key].swapaxes(0, 1), mine_columns).reshape(shape) + bias - normalizer)
            ds = p * (_product(tiles.v[key].swapaxes(0, 1), upstream_columns).reshape(shape) - delta)
            p, ds = p.reshape(flat).astype(v.dtype), ds.reshape(flat).astype(k.dtype)
            dv = dv.at[key].add(_product(p, upstream).swapaxes(0, 1))
            dk = dk.at[key].add(_product(ds, mine).swapaxes(0, 1))
            return dk, dv, dq + _product(tiles.key_columns[key], ds)

        empty = jnp.zeros((heads, dim, groups * size), jnp.float32)
        dk, dv, dq = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, (dk, dv, empty))
        dq = (dq * scale).reshape(heads, dim, groups, size).transpose(3, 0, 2, 1)
        return (dk, dv, places.at[query].set(dq.astype(gradient.dtype))), None

    # Gradients of queries take the places of those of the outputs, and sums begin when these are there: else the
    # compiler fills their places when the program starts, and keeps them until here.
    zeros = after(jnp.zeros(tiles.k.shape, jnp.float32), gradient[(0,) * gradient.ndim].astype(jnp.float32))
    numbers = jnp.arange(tiles.first.shape[0])
    places, normalizer, delta = (_by_key_head(_cut(x, size), heads) for x in (gradient, normalizer, delta))
    (dk, dv, dq), _ = jax.lax.scan(one, (zeros, zeros, places), (numbers, tiles.q, normalizer, delta))
    pairs = zip((dq, dk, dv), (q, k, v), strict=True)
    return tuple(_join(x, batch, tokens).reshape(like.shape).astype(like.dtype) for x, like in pairs)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
