"""Attention of new tokens over cached pages as a Pallas kernel for TPUs, which reads live pages only and copies none.

Work is a list of blocks. A block is up to `PAGES_PER_BLOCK` consecutive pages of one row, and the grid has as many steps as
the rows of the dispatch have blocks, so that a short row costs nothing behind a long one. Page numbers are prefetched scalars
from which the pipeline computes where to read; an unused place in a row's last block repeats the page that the place had in
the block before, which the pipeline does not read again. Bytes read per step are therefore those of the pages that hold
tokens: `live_bytes`.

The result is not final: `ops.paged_attention` merges it with the attention over the tokens of the dispatch, whose keys and
values are not in pages yet, by the log-sum-exp of both (as in FlashDecoding, Dao et al., 2023).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dv2_jax.parallel.mesh import BATCH_AXES, batch_axes, traced_platform

PAGES_PER_BLOCK = 8  # 1 MiB of keys and values at 7B and 64 tokens per page: reading it takes as long as a grid step
QUERY_ROWS = 512  # of one grid step: query tokens times query heads per key/value head
LANES, SUBLANES = 128, 16
VMEM_BYTES = 64 << 20
KERNEL_NAME = "paged_attention"
EMPTY = -1e30  # log-sum-exp of no token; finite, because the difference of two infinities is no number


def available(head_dim: int, page_size: int) -> bool:
    """Tests if this trace is for a TPU whose tiles divide a page's keys."""
    return traced_platform() == "tpu" and head_dim % LANES == 0 and page_size % SUBLANES == 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PageBlocks:
    """The blocks of G groups of b rows each; the first `count` of I are used, and grouped by row."""

    row: Int[Array, "G I"]  # row in the group
    page: Int[Array, "G I M"]  # page numbers in the group
    start: Int[Array, "G b"]  # number of the row's first block
    length: Int[Array, "G b"]  # cached tokens of the row
    count: Int[Array, "G 1"]


def page_blocks(page_table: Int[Array, "B n"], lengths: Int[Array, "B"], page_size: int, groups: int) -> PageBlocks:
    """Lists the blocks of pages that hold the first `lengths` tokens of each row."""
    rows, columns = page_table.shape
    build = functools.partial(_blocks_of_group, page_size=page_size)
    return jax.vmap(build)(page_table.reshape(groups, rows // groups, columns), lengths.reshape(groups, -1))


def _blocks_of_group(table: Int[Array, "b n"], lengths: Int[Array, "b"], page_size: int) -> PageBlocks:
    rows, columns = table.shape
    pages = -(-lengths // page_size)
    blocks = -(-pages // PAGES_PER_BLOCK)
    ends = jnp.cumsum(blocks)
    start, count = ends - blocks, ends[-1]
    item = jnp.arange(rows * -(-columns // PAGES_PER_BLOCK), dtype=jnp.int32)
    row = jnp.minimum(jnp.searchsorted(ends, item, side="right"), rows - 1).astype(jnp.int32)
    column = (item - start[row])[:, None] * PAGES_PER_BLOCK + jnp.arange(PAGES_PER_BLOCK, dtype=jnp.int32)
    is_used = (column < pages[row][:, None]) & (item < count)[:, None]
    page = table[row[:, None], jnp.clip(column, 0, columns - 1)]
    latest = jax.lax.cummax(jnp.where(is_used, item[:, None], -1), axis=0)
    page = jnp.where(latest >= 0, jnp.take_along_axis(page, jnp.maximum(latest, 0), axis=0), 0)
    return PageBlocks(row, page.astype(jnp.int32), start.astype(jnp.int32), lengths, count[None].astype(jnp.int32))


def live_bytes(lengths: list[int], page_size: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Returns the bytes of keys and values of one layer that the kernel reads for one tile of queries of each row."""
    pages = sum(-(-length // page_size) for length in lengths)
    return 2 * pages * page_size * kv_heads * head_dim * itemsize


def attend_pages(
    queries: Float[Array, "B K R hd"],
    k: Float[Array, "L N p C"],
    v: Float[Array, "L N p C"],
    layer: Int[Array, ""],
    blocks: PageBlocks,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B K R hd"], Float[Array, "B K R"]]:
    """Computes softmax attention of every row's queries over its cached tokens, of one layer.

    Args:
        queries: R = query tokens times query heads per key/value head; scaled.
        k, v: the pages of all layers, of which C = K * hd features per token.
        interpret: runs the kernel in interpret mode, for tests on CPU.

    Returns:
        (output in float32, log-sum-exp of the scores). The latter is `EMPTY` for rows without a cached token.
    """
    attend = functools.partial(_attend_group, interpret=interpret)
    arguments = (queries, k, v, layer.reshape(1), blocks)
    if batch_axes() is None:
        return attend(*arguments)
    # Without `shard_map` XLA would all-gather the pages, because it cannot partition a kernel.
    heads = "tensor" if queries.shape[1] % jax.sharding.get_abstract_mesh().shape["tensor"] == 0 else None
    rows, pages = PartitionSpec(BATCH_AXES, heads), PartitionSpec(None, BATCH_AXES, None, heads)
    specs = (rows, pages, pages, PartitionSpec(), PartitionSpec(BATCH_AXES))
    return jax.shard_map(attend, in_specs=specs, out_specs=(rows, rows), check_vma=False)(*arguments)


def write_tokens(
    pages: Float[Array, "L N p C"], new: Float[Array, "L B T K hd"], slots: Int[Array, "B T"]
) -> Float[Array, "L N p C"]:
    """Writes token (b, t) of every layer to `slots[b, t]` of its group; slots beyond the last page are dropped.

    Pages stay in the layout that the kernel reads. A scatter whose updates span layers has another one, which costs two
    copies of all pages.
    """
    if batch_axes() is None:
        return _write_group(pages, new, slots)
    heads = "tensor" if new.shape[3] % jax.sharding.get_abstract_mesh().shape["tensor"] == 0 else None
    place = PartitionSpec(None, BATCH_AXES, None, heads)
    specs = (place, place, PartitionSpec(BATCH_AXES))
    return jax.shard_map(_write_group, in_specs=specs, out_specs=place, check_vma=False)(pages, new, slots)


def _write_group(pages, new, slots):
    layers, count, page_size, features = pages.shape
    limit = count * page_size
    first = jnp.arange(layers, dtype=jnp.int32)[:, None, None] * limit
    places = jnp.where(slots < limit, first + slots, layers * limit)
    flat = (
        pages.reshape(-1, features)
        .at[places]
        .set(new.astype(pages.dtype).reshape(*places.shape, features), mode="drop")
    )
    return flat.reshape(pages.shape)


def copy_within_groups(
    pages: Float[Array, "L N p C"], source: Int[Array, "G c"], target: Int[Array, "G c"]
) -> Float[Array, "L N p C"]:
    """Copies pages within their groups; targets beyond the last page are dropped. The layout stays, as in `write_tokens`."""
    if batch_axes() is None:
        return _copy_group(pages, source, target)
    # The sharding of heads is that of the argument, which `jit` knows and the mesh does not.
    place = PartitionSpec(None, BATCH_AXES)
    specs = (place, PartitionSpec(BATCH_AXES), PartitionSpec(BATCH_AXES))
    return jax.shard_map(_copy_group, in_specs=specs, out_specs=place, check_vma=False, axis_names=set(BATCH_AXES))(
        pages, source, target
    )


def _copy_group(pages, source, target):
    layers, count, page_size, features = pages.shape
    first = jnp.arange(layers, dtype=jnp.int32)[:, None] * count
    places = jnp.where(target[0] < count, first + target[0], layers * count)
    flat = pages.reshape(-1, page_size, features)
    return flat.at[places].set(flat[first + source[0]], mode="drop").reshape(pages.shape)


def _attend_group(queries, k, v, layer, blocks: PageBlocks, *, interpret: bool):
    """Computes the attention of the rows of one group over its pages."""
    if blocks.row.shape[0] != 1:
        raise ValueError(f"{blocks.row.shape[0]} groups of pages on one device: a group is the pages of one device")
    rows, kv_heads, count, dim = queries.shape
    page_size, features = k.shape[2:]
    tile = min(QUERY_ROWS, count)
    padded = -(-count // tile) * tile
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, padded - count), (0, 0)))
    row, page, start, length = blocks.row[0], blocks.page[0].reshape(-1), blocks.start[0], blocks.length[0]

    def query_index(tile_, item, layer, row, page, start, length):
        return row[item], 0, tile_, 0

    def page_index(place, tile_, item, layer, row, page, start, length):
        return layer[0], page[item * PAGES_PER_BLOCK + place], 0, 0

    query_spec = pl.BlockSpec((1, kv_heads, tile, dim), query_index)
    page_specs = [
        pl.BlockSpec((1, 1, page_size, features), functools.partial(page_index, place))
        for place in range(PAGES_PER_BLOCK)
    ]
    sums_spec = pl.BlockSpec((1, kv_heads, tile, LANES), query_index)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, page_size=page_size, head_dim=dim),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(padded // tile, jnp.maximum(blocks.count[0, 0], 1)),  # an empty grid would still prefetch a block
            in_specs=[query_spec, *page_specs, *page_specs],
            out_specs=[query_spec, sums_spec],
            scratch_shapes=[
                pltpu.VMEM((kv_heads, tile, dim), jnp.float32),
                pltpu.VMEM((kv_heads, tile, LANES), jnp.float32),
                pltpu.VMEM((kv_heads, tile, LANES), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, jnp.float32),
            jax.ShapeDtypeStruct((rows, kv_heads, padded, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name=KERNEL_NAME,
    )(layer, row, page, start, length, queries, *[k] * PAGES_PER_BLOCK, *[v] * PAGES_PER_BLOCK)
    # A row without blocks is never written, and one of an empty grid has no sum.
    has_tokens = (length > 0)[:, None, None]
    return (
        jnp.where(has_tokens[..., None], out[:, :, :count], 0.0),
        jnp.where(has_tokens, lse[:, :, :count, 0], EMPTY),
    )


def _kernel(layer, row_of, page, start, length, q, *refs, page_size: int, head_dim: int):
    """Adds one block of one row to the running softmax of a tile of its queries."""
    ks, vs = refs[:PAGES_PER_BLOCK], refs[PAGES_PER_BLOCK : 2 * PAGES_PER_BLOCK]
    out, lse, total, row_max, row_sum = refs[2 * PAGES_PER_BLOCK :]
    item, count = pl.program_id(1), pl.num_programs(1)
    row = row_of[item]
    is_first = (item == 0) | (row_of[jnp.maximum(item - 1, 0)] != row)
    is_last = (item == count - 1) | (row_of[jnp.minimum(item + 1, count - 1)] != row)

    @pl.when(is_first)
    def _():
        total[...] = jnp.zeros_like(total)
        row_max[...] = jnp.full_like(row_max, EMPTY)
        row_sum[...] = jnp.zeros_like(row_sum)

    first_token = (item - start[row]) * PAGES_PER_BLOCK * page_size
    tokens = PAGES_PER_BLOCK * page_size
    position = first_token + jax.lax.broadcasted_iota(jnp.int32, (q.shape[2], tokens), 1)
    visible = position < length[row]
    for head in range(q.shape[1]):
        features = slice(head * head_dim, (head + 1) * head_dim)
        keys = jnp.concatenate([page_k[0, 0, :, features] for page_k in ks])
        values = jnp.concatenate([page_v[0, 0, :, features] for page_v in vs])
        scores = jax.lax.dot_general(q[0, head], keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        scores = jnp.where(visible, scores, EMPTY)
        old_max = row_max[head]
        new_max = jnp.maximum(old_max, scores.max(-1, keepdims=True))
        weights = jnp.where(visible, jnp.exp(scores - new_max[:, :1]), 0.0)
        shrink = jnp.exp(old_max - new_max)
        row_max[head] = new_max
        row_sum[head] = row_sum[head] * shrink + weights.sum(-1, keepdims=True)
        added = jax.lax.dot_general(
            weights.astype(values.dtype), values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        total[head] = total[head] * shrink[:, :1] + added

    @pl.when(is_last)
    def _():
        out[0] = total[...] / row_sum[:, :, :1]
        lse[0] = row_max[...] + jnp.log(row_sum[...])
