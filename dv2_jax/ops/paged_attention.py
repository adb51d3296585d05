"""Attention of new tokens over cached pages and over themselves, for prefill and decode.

A dispatch reads the cached tokens of its rows (`cached_rows`), attends once per step, and writes its keys and values at the
end (`write_pages`). On a TPU a kernel reads the pages in place (`ops.paged_attention_tpu`). Elsewhere the pages are gathered
once per dispatch (`read_pages`), only as wide as its longest row needs, because attention on CPU is limited by memory
bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dv2_jax.ops import paged_attention_tpu
from dv2_jax.ops.scan_layers import unrolls


@jax.tree_util.register_dataclass  # every field is a child of the pytree, except static ones
@dataclass(frozen=True)
class Pages:
    """Keys and values of N pages of p tokens, all layers.

    Pages are sharded evenly over `groups`, like the rows of a dispatch. A group's pages are resident on the devices that
    compute its rows, and page numbers count within the group, so reads and writes need no communication.
    """

    k: Float[Array, "L N p C"]  # C = K * hd: the features of all heads, which a TPU's tiles divide
    v: Float[Array, "L N p C"]
    kv_heads: int = field(metadata={"static": True})
    groups: int = field(default=1, metadata={"static": True})

    @property
    def per_group(self) -> int:
        """Returns the number of pages of one group, which is also the first invalid page number."""
        return self.k.shape[1] // self.groups

    @property
    def page_size(self) -> int:
        """Returns the number of tokens of a page."""
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        """Returns the number of features of a head."""
        return self.k.shape[3] // self.kv_heads

    def grouped(self, x: Float[Array, "*L N p C"]) -> Float[Array, "*L G n p C"]:
        """Splits the page dimension of `k`, `v` or one layer of them into (group, page)."""
        at = x.ndim - 3
        return x.reshape(*x.shape[:at], self.groups, self.per_group, *x.shape[at + 1 :])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Cached keys and values of B rows, W tokens wide, in the layouts that the matmuls read fastest.

    Of one layer, or stacked over L layers if the model scans them.
    """

    k: Float[Array, "*L B K hd W"]
    v: Float[Array, "*L B K W hd"]


@dataclass(frozen=True)
class CachedRows:
    """The cached tokens of the rows of a dispatch, as its layers read them.

    Attributes:
        layers: what each layer reads: a list over layers, or stacked if the model scans its layers.
        attend: computes attention from (q, k, v, the layer's entry of `layers`, mask), which are those of `paged_attention`.
    """

    layers: Any
    attend: Callable[[Array, Array, Array, Any, Array], Array]


def cached_rows(pages: Pages, page_table: Int[Array, "B n"], lengths: Int[Array, "B"]) -> CachedRows:
    """Prepares the attention of a dispatch over the first `lengths` tokens in the pages of each row."""
    layers = pages.k.shape[0]
    if paged_attention_tpu.available(pages.head_dim, pages.page_size):
        return in_place(pages, page_table, lengths)
    prefix = (
        [read_pages(pages, page_table, layer) for layer in range(layers)]
        if unrolls(layers)
        else read_pages(pages, page_table)
    )
    return CachedRows(prefix, lambda q, k, v, prefix, mask: paged_attention(q, k, v, prefix, lengths, mask))


def in_place(
    pages: Pages, page_table: Int[Array, "B n"], lengths: Int[Array, "B"], *, interpret: bool = False
) -> CachedRows:
    """Returns the cached rows that a kernel reads in place; `interpret` runs it in interpret mode, for tests on CPU."""
    blocks = paged_attention_tpu.page_blocks(page_table, lengths, pages.page_size, pages.groups)
    layers = jnp.arange(pages.k.shape[0], dtype=jnp.int32)

    def attend(q, k, v, layer, mask):
        queries = _grouped_queries(q, k.shape[2])
        out, lse = paged_attention_tpu.attend_pages(queries, pages.k, pages.v, layer, blocks, interpret=interpret)
        return _merge(q, queries, k, v, mask, out, lse)

    return CachedRows(list(layers) if unrolls(len(layers)) else layers, attend)


def empty_pages(
    layers: int, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: jnp.dtype, groups: int = 1
) -> Pages:
    """Allocates zeroed pages. Raises ValueError if `groups` does not divide `pages`."""
    if pages % groups:
        raise ValueError(f"{pages} pages cannot be split over {groups} groups")
    shape = (layers, pages, page_size, kv_heads * head_dim)
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), kv_heads, groups)


def read_pages(pages: Pages, page_table: Int[Array, "B n"], layer: int | None = None) -> Prefix:
    """Gathers and concatenates the pages of each row, of one layer or stacked over all.

    Entries beyond a row's last page may name any page of its group: they are beyond the row's length and masked.
    """
    size, heads, dim = pages.page_size, pages.kv_heads, pages.head_dim
    rows, count = page_table.shape

    def gather(layer: Float[Array, "N p C"]) -> Float[Array, "B n p K hd"]:
        if pages.groups == 1:  # a plain gather compiles faster than a batched one
            return layer[page_table].reshape(rows, count, size, heads, dim)
        table = page_table.reshape(pages.groups, rows // pages.groups, count)
        return jax.vmap(lambda x, t: x[t])(pages.grouped(layer), table).reshape(rows, count, size, heads, dim)

    def read(k, v):
        return Prefix(
            gather(k).transpose(0, 3, 4, 1, 2).reshape(rows, heads, dim, count * size),
            gather(v).transpose(0, 3, 1, 2, 4).reshape(rows, heads, count * size, dim),
        )

    return jax.vmap(read)(pages.k, pages.v) if layer is None else read(pages.k[layer], pages.v[layer])


def write_pages(
    pages: Pages, k: Float[Array, "L B T K hd"], v: Float[Array, "L B T K hd"], slots: Int[Array, "B T"]
) -> Pages:
    """Writes token (b, t) to `slots[b, t]` = page * p + offset in the page; slots beyond the last page are dropped."""

    if paged_attention_tpu.available(pages.head_dim, pages.page_size):
        write_tokens = paged_attention_tpu.write_tokens
        return replace(pages, k=write_tokens(pages.k, k, slots), v=write_tokens(pages.v, v, slots))

    def write(old, new):
        layers, _, _, features = old.shape
        new = new.astype(old.dtype).reshape(*new.shape[:3], features)
        if pages.groups == 1:
            flat = old.reshape(layers, -1, features)
            return flat.at[:, slots].set(new, mode="drop").reshape(old.shape)
        flat = pages.grouped(old).reshape(layers, pages.groups, -1, features)
        new = new.reshape(layers, pages.groups, -1, features)
        slots_of_group = slots.reshape(pages.groups, -1)
        scatter = jax.vmap(lambda x, y, at: x.at[:, at].set(y, mode="drop"), in_axes=(1, 1, 0), out_axes=1)
        return scatter(flat, new, slots_of_group).reshape(old.shape)

    return replace(pages, k=write(pages.k, k), v=write(pages.v, v))


def copy_pages(pages: Pages, source: Int[Array, "G C"], target: Int[Array, "G C"]) -> Pages:
    """Copies pages within their groups (for copy-on-write); targets beyond the last page are dropped."""

    if paged_attention_tpu.available(pages.head_dim, pages.page_size):
        copy_within = paged_attention_tpu.copy_within_groups
        return replace(pages, k=copy_within(pages.k, source, target), v=copy_within(pages.v, source, target))

    def copy_group(x, source, target):
        return x.at[:, target].set(x[:, source], mode="drop")

    def copy(x):
        if pages.groups == 1:
            return copy_group(x, source[0], target[0])
        return jax.vmap(copy_group, in_axes=(1, 0, 0), out_axes=1)(pages.grouped(x), source, target).reshape(x.shape)

    return replace(pages, k=copy(pages.k), v=copy(pages.v))


def paged_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B N K hd"],
    v: Float[Array, "B N K hd"],
    prefix: Prefix,
    prefix_lengths: Int[Array, "B"],
    mask: Bool[Array, "B T N"],
) -> Float[Array, "B T H hd"]:
    """Computes softmax attention over the cached prefix and N new tokens.

    Args:
        q: queries of the T tokens of this step.
        k, v: keys and values computed by this dispatch so far.
        prefix: one layer's gathered pages.
        prefix_lengths: number of cached tokens of each row; later positions are masked.
        mask: new tokens that each query attends to; at least itself.
    """
    batch, tokens, heads, dim = q.shape
    kv_heads, width = k.shape[2], prefix.v.shape[-2]
    queries = _grouped_queries(q, kv_heads)

    def masked_scores(product, visible):
        product = product.reshape(batch, kv_heads, heads // kv_heads, tokens, -1)
        return jnp.where(visible, product, jnp.finfo(jnp.float32).min)

    suffix_scores = jnp.einsum("bkqd,bnkd->bkqn", queries, k, preferred_element_type=jnp.float32)
    suffix_scores = masked_scores(suffix_scores, mask[:, None, None])
    row_max = suffix_scores.max(-1, keepdims=True)
    if width:
        prefix_scores = jnp.einsum("bkqd,bkdw->bkqw", queries, prefix.k, preferred_element_type=jnp.float32)
        prefix_scores = masked_scores(prefix_scores, (jnp.arange(width) < prefix_lengths[:, None])[:, None, None, None])
        row_max = jnp.maximum(row_max, prefix_scores.max(-1, keepdims=True))
    suffix_p = jnp.exp(suffix_scores - row_max)
    row_sum = suffix_p.sum(-1)
    flat = (batch, kv_heads, queries.shape[2])
    out = jnp.einsum(
        "bkqn,bnkd->bkqd", suffix_p.reshape(*flat, -1).astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    if width:
        prefix_p = jnp.exp(prefix_scores - row_max)
        row_sum += prefix_p.sum(-1)
        out += jnp.einsum(
            "bkqw,bkwd->bkqd",
            prefix_p.reshape(*flat, width).astype(v.dtype),
            prefix.v,
            preferred_element_type=jnp.float32,
        )
    return _ungrouped(out / row_sum.reshape(flat)[..., None], q)


def _grouped_queries(q: Float[Array, "B T H hd"], kv_heads: int) -> Float[Array, "B K GT hd"]:
    """Scales queries and groups them by key/value head; the tokens of one query head are consecutive."""
    batch, tokens, heads, dim = q.shape
    grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, dim) * dim**-0.5
    return grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)


def _ungrouped(out: Float[Array, "B K GT hd"], q: Float[Array, "B T H hd"]) -> Float[Array, "B T H hd"]:
    """Reverses the grouping of `_grouped_queries`; the result has the type of `q`."""
    batch, tokens, heads, dim = q.shape
    kv_heads = out.shape[1]
    out = out.reshape(batch, kv_heads, heads // kv_heads, tokens, dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, tokens, heads, dim).astype(q.dtype)


def _merge(
    q: Float[Array, "B T H hd"],
    queries: Float[Array, "B K GT hd"],
    k: Float[Array, "B N K hd"],
    v: Float[Array, "B N K hd"],
    mask: Bool[Array, "B T N"],
    prefix_out: Float[Array, "B K GT hd"],
    prefix_lse: Float[Array, "B K GT"],
) -> Float[Array, "B T H hd"]:
    """Attends to the new tokens and merges the result with that over the prefix, which is normalized by itself."""
    groups, tokens = q.shape[2] // k.shape[2], q.shape[1]
    scores = jnp.einsum("bkqd,bnkd->bkqn", queries, k, preferred_element_type=jnp.float32)
    visible = jnp.broadcast_to(mask[:, None, None], (mask.shape[0], 1, groups, *mask.shape[1:]))
    visible = visible.reshape(visible.shape[0], 1, groups * tokens, -1)
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    highest = jnp.maximum(scores.max(-1), prefix_lse)
    weights = jnp.exp(scores - highest[..., None])
    prefix_weight = jnp.exp(prefix_lse - highest)
    out = jnp.einsum("bkqn,bnkd->bkqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _ungrouped((out + prefix_weight[..., None] * prefix_out) / (weights.sum(-1) + prefix_weight)[..., None], q)
