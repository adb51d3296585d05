"""Segment attention in tiles, for CPU: the scores of a tile stay in cache, and pairs of tiles without a common segment
are skipped (a row packed with four trajectories costs a quarter of a full one).

Arguments and results are those of `attention_blocked`. Loop bounds depend on the data, so one program serves every
packing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dv2_jax.ops.remat import depend_on

TILE = 128  # tile size for causal attention; larger tiles waste work on masked pairs
WIDE_TILE = 288  # key tile for full attention; limited by the cache footprint of one tile's scores
WIDE_QUERIES = (
    2  # query tiles of full attention are this many times larger: fewer reads of keys, fewer updates of dK, dV
)
MULTIPLE = 16  # tile sizes are multiples of this: fp32 elements of a 512-bit vector
LOWEST = float(np.finfo(np.float32).min)


class _Tiles(NamedTuple):
    """The operands in N = B * n tiles of t queries, and M = B * m tiles of s keys. t = s for causal attention."""

    q: Float[Array, "N t K G hd"]
    k: Float[Array, "M s K hd"]
    v: Float[Array, "M s K hd"]
    key_columns: Float[Array, "M K hd s"]
    q_segments: Int[Array, "N t"]
    k_segments: Int[Array, "M s"]
    first: Int[Array, "N"]  # first key tile that a query tile needs, counted within its row
    end: Int[Array, "N"]  # past the last one
    row_start: Int[Array, "N"]  # index of the row's first key tile


def _sizes(tokens: int, causal: bool) -> tuple[int, int]:
    """Returns the query and key tile sizes: the fewest tiles, with the least padding of the last one."""

    def size(largest: int) -> int:
        return -(-tokens // (-(-tokens // largest) * MULTIPLE)) * MULTIPLE

    return (size(TILE), size(TILE)) if causal else (size(WIDE_QUERIES * WIDE_TILE), size(WIDE_TILE))


def _cut(x: Shaped[Array, "B T ..."], tile: int) -> Shaped[Array, "N t ..."]:
    """Pads the tokens to full tiles and reshapes. The layout stays token-major; only the current tile is transposed."""
    pad = [(0, 0), (0, -x.shape[1] % tile), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, pad).reshape(-1, tile, *x.shape[2:])


def _join(x: Shaped[Array, "N t ..."], batch: int, tokens: int) -> Shaped[Array, "B T ..."]:
    return x.reshape(batch, -1, *x.shape[2:])[:, :tokens]


def _tiles(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> _Tiles:
    batch, (queries, keys) = q.shape[0], _sizes(q.shape[1], causal)
    # Padding of the last tile has segment -1, so no query attends to it.
    q_segments, k_segments = (_cut(segments + 1, size) - 1 for size in (queries, keys))

    def segment_range(segments: Array) -> tuple[Array, Array]:
        # Padding counts as the last segment: ids then rise along a packed row, and ranges of key tiles are tight.
        last = jnp.iinfo(jnp.int32).max
        ordered = jnp.where(segments <= 0, last, segments).reshape(batch, -1, segments.shape[-1])
        return ordered.min(-1), ordered.max(-1)

    low, high = segment_range(q_segments)
    key_low, key_high = segment_range(k_segments)
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
    return _Tiles(q, k, v, columns, q_segments, k_segments, first.reshape(-1), end.reshape(-1), row_start)


def _by_key_head(x: Shaped[Array, "N t H ..."], heads: int) -> Shaped[Array, "N t K G ..."]:
    return x.reshape(*x.shape[:2], heads, -1, *x.shape[3:])


def _bias(causal: bool, tiles: _Tiles, query: Array, key: Array, *, keys_axis: int) -> Float[Array, "t s"]:
    """Returns the mask of a pair of tiles (indexed over all rows) as an additive bias: 0 or the lowest fp32 number.

    Its shape is [s t] if `keys_axis` is 0.
    """
    q_segments, k_segments = tiles.q_segments[query], tiles.k_segments[key]
    allowed = jnp.expand_dims(q_segments, keys_axis) == jnp.expand_dims(k_segments, 1 - keys_axis)
    if causal:
        tile = tiles.k_segments.shape[1]
        offset = np.arange(tile)
        allowed &= (query - key) * tile + np.expand_dims(offset, keys_axis) >= np.expand_dims(offset, 1 - keys_axis)
    return jnp.where(allowed, 0.0, LOWEST)


def forward(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, Array]:
    """Returns the output and the rows' log-sum-exp; see `attention_blocked.forward`."""
    batch, tokens = q.shape[:2]
    tiles = _tiles(causal, q, k, v, segments)
    _, size, heads, groups, dim = tiles.q.shape
    keys = tiles.k_segments.shape[1]
    scores_shape = (heads, groups, size, keys)
    hqd = (heads, groups * size, dim)

    def one_query_tile(buffer: Array, query: Array) -> tuple[Array, Array]:
        q_tile = (buffer[query] * dim**-0.5).transpose(1, 2, 0, 3).reshape(hqd)
        start = tiles.row_start[query]

        def step(key, state):
            row_max, row_sum, acc = state
            key = start + key
            scores = _product(q_tile, tiles.key_columns[key]).reshape(scores_shape)
            scores += _bias(causal, tiles, query, key, keys_axis=1)
            new_max = jnp.maximum(row_max, scores.max(-1, keepdims=True))
            p = jnp.exp(scores - new_max)
            rescale = jnp.exp(row_max - new_max)
            product = _product(p.reshape(heads, -1, keys).astype(v.dtype), tiles.v[key].swapaxes(0, 1))
            return new_max, row_sum * rescale + p.sum(-1, keepdims=True), acc * rescale + product.reshape(acc.shape)

        per_query = (heads, groups, size, 1)
        empty = (jnp.full(per_query, LOWEST), jnp.zeros(per_query), jnp.zeros((heads, groups, size, dim)))
        row_max, row_sum, acc = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, empty)
        out = (acc / row_sum).astype(q.dtype).transpose(2, 0, 1, 3)
        return buffer.at[query].set(out), (row_max + jnp.log(row_sum))[..., 0].transpose(2, 0, 1)

    # XLA updates the scan carry in place: outputs overwrite the query buffer, and no second buffer is allocated.
    out, lse = jax.lax.scan(one_query_tile, tiles.q, jnp.arange(tiles.first.shape[0]))
    return _join(out, batch, tokens).reshape(q.shape), _join(lse, batch, tokens).reshape(q.shape[:3])


def backward(
    causal: bool, q: Array, k: Array, v: Array, segments: Array, gradient: Array, lse: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Returns the gradients of q, k and v; see `attention_blocked.backward`.

    Probabilities have the layout [K s G t], with keys before queries, so that no matmul transposes its operand: a
    transposing matmul takes twice as long on XLA:CPU.
    """
    batch, tokens = q.shape[:2]
    tiles = _tiles(causal, q, k, v, segments)
    _, size, heads, groups, dim = tiles.q.shape
    keys = tiles.k_segments.shape[1]
    hqd = (heads, groups * size, dim)
    per_query = (heads, 1, groups, size)
    scores_shape = (heads, keys, groups, size)
    scores_flat = (heads, keys, groups * size)
    scale = dim**-0.5

    def one_query_tile(state: tuple[Array, Array, Array], xs) -> tuple[tuple[Array, Array, Array], None]:
        dk, dv, buffer = state
        query, q_tile, lse, delta = xs
        q_tile, do_tile = (x.transpose(1, 2, 0, 3).reshape(hqd) for x in (q_tile * scale, buffer[query]))
        lse, delta = (x.transpose(1, 2, 0).reshape(per_query) for x in (lse, delta))
        q_columns, do_columns = q_tile.swapaxes(-1, -2), do_tile.swapaxes(-1, -2)
        start = tiles.row_start[query]

        def step(key, sums):
            dk, dv, dq = sums
            key = start + key
            bias = _bias(causal, tiles, query, key, keys_axis=0)[:, None]
            p = jnp.exp(_product(tiles.k[key].swapaxes(0, 1), q_columns).reshape(scores_shape) + bias - lse)
            ds = p * (_product(tiles.v[key].swapaxes(0, 1), do_columns).reshape(scores_shape) - delta)
            p, ds = p.reshape(scores_flat).astype(v.dtype), ds.reshape(scores_flat).astype(k.dtype)
            dv = dv.at[key].add(_product(p, do_tile).swapaxes(0, 1))
            dk = dk.at[key].add(_product(ds, q_tile).swapaxes(0, 1))
            return dk, dv, dq + _product(tiles.key_columns[key], ds)

        empty = jnp.zeros((heads, dim, groups * size), jnp.float32)
        dk, dv, dq = jax.lax.fori_loop(tiles.first[query], tiles.end[query], step, (dk, dv, empty))
        dq = (dq * scale).reshape(heads, dim, groups, size).transpose(3, 0, 2, 1)
        return (dk, dv, buffer.at[query].set(dq.astype(gradient.dtype))), None

    # dQ overwrites dO in the scan carry. Accumulators are initialized with `0 * grad` instead of zeros, so that XLA
    # cannot allocate them at program start.
    zeros = depend_on(jnp.zeros(tiles.k.shape, jnp.float32), gradient[(0,) * gradient.ndim].astype(jnp.float32))
    indices = jnp.arange(tiles.first.shape[0])
    do, lse, delta = (_by_key_head(_cut(x, size), heads) for x in (gradient, lse, delta))
    (dk, dv, dq), _ = jax.lax.scan(one_query_tile, (zeros, zeros, do), (indices, tiles.q, lse, delta))
    pairs = zip((dq, dk, dv), (q, k, v), strict=True)
    return tuple(_join(x, batch, tokens).reshape(like.shape).astype(like.dtype) for x, like in pairs)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
