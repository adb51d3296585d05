"""Attention of new tokens over cached pages and over themselves, for prefill and decode.

A dispatch gathers the pages of its rows once (`read_pages`), attends once per step (`paged_attention`), and writes its
keys and values at the end (`write_pages`). The gather is only as wide as the longest row of the dispatch needs, because
attention on CPU is limited by memory bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass  # every field is a child of the pytree, except static ones
@dataclass(frozen=True)
class Pages:
    """Keys and values of N pages of p tokens, all layers.

    Pages are sharded evenly over `groups`, like the rows of a dispatch. A group's pages are resident on the devices that
    compute its rows, and page numbers count within the group, so reads and writes need no communication.
    """

    k: Float[Array, "L N p K hd"]
    v: Float[Array, "L N p K hd"]
    groups: int = field(default=1, metadata={"static": True})

    @property
    def per_group(self) -> int:
        """Returns the number of pages of one group, which is also the first invalid page number."""
        return self.k.shape[1] // self.groups

    def grouped(self, x: Float[Array, "*L N p K hd"]) -> Float[Array, "*L G n p K hd"]:
        """Splits the page dimension of `k`, `v` or one layer of them into (group, page)."""
        at = x.ndim - 4
        return x.reshape(*x.shape[:at], self.groups, self.per_group, *x.shape[at + 1 :])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Cached keys and values of B rows, W tokens wide, in the layouts that the matmuls read fastest.

    Of one layer, or stacked over L layers if the model scans them.
    """

    k: Float[Array, "*L B K hd W"]
    v: Float[Array, "*L B K W hd"]


def empty_pages(
    layers: int, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: jnp.dtype, groups: int = 1
) -> Pages:
    """Allocates zeroed pages. Raises ValueError if `groups` does not divide `pages`."""
    if pages % groups:
        raise ValueError(f"{pages} pages cannot be split over {groups} groups")
    shape = (layers, pages, page_size, kv_heads, head_dim)
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), groups)


def read_pages(pages: Pages, page_table: Int[Array, "B n"], layer: int | None = None) -> Prefix:
    """Gathers and concatenates the pages of each row, of one layer or stacked over all.

    Entries beyond a row's last page may name any page of its group: they are beyond the row's length and masked.
    """
    size, heads, dim = pages.k.shape[2:]
    rows, count = page_table.shape

    def gather(layer: Float[Array, "N p K hd"]) -> Float[Array, "B n p K hd"]:
        if pages.groups == 1:  # a plain gather compiles faster than a batched one
            return layer[page_table]
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

    def write(old, new):
        layers, _, _, heads, dim = old.shape
        new = new.astype(old.dtype)
        if pages.groups == 1:
            flat = old.reshape(layers, -1, heads, dim)
            return flat.at[:, slots].set(new, mode="drop").reshape(old.shape)
        flat = pages.grouped(old).reshape(layers, pages.groups, -1, heads, dim)
        new = new.reshape(layers, pages.groups, -1, heads, dim)
        slots_of_group = slots.reshape(pages.groups, -1)
        scatter = jax.vmap(lambda x, y, at: x.at[:, at].set(y, mode="drop"), in_axes=(1, 1, 0), out_axes=1)
        return scatter(flat, new, slots_of_group).reshape(old.shape)

    return Pages(write(pages.k, k), write(pages.v, v), pages.groups)


def copy_pages(pages: Pages, source: Int[Array, "G C"], target: Int[Array, "G C"]) -> Pages:
    """Copies pages within their groups (for copy-on-write); targets beyond the last page are dropped."""

    def copy_group(x, source, target):
        return x.at[:, target].set(x[:, source], mode="drop")

    def copy(x):
        if pages.groups == 1:
            return copy_group(x, source[0], target[0])
        return jax.vmap(copy_group, in_axes=(1, 0, 0), out_axes=1)(pages.grouped(x), source, target).reshape(x.shape)

    return Pages(copy(pages.k), copy(pages.v), pages.groups)


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
    grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, dim) * dim**-0.5
    queries = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)  # [B K G*T hd]

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
    out = out.reshape(batch, kv_heads, heads // kv_heads, tokens, dim) / row_sum[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, dim).astype(q.dtype)
