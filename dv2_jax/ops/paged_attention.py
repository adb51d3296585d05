"""Attention of new tokens over cached pages and over themselves, for prefill and decode alike.

A dispatch reads the pages of its rows once (`read_pages`), attends as often as it has steps (`paged_attention`),
and writes its own keys and values at the end (`write_pages`). Pages are only gathered as wide as the longest row
of the dispatch needs: on a CPU, attention is bound by the memory that it reads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=["groups"])
@dataclass(frozen=True)
class Pages:
    """Keys and values of N pages of p tokens, all layers.

    The pages are split evenly over ``groups``, as the rows of a dispatch are. A group's pages lie on the devices that
    compute its rows, and page numbers count within the group: reading and writing then never crosses devices.
    """

    k: Float[Array, "L N p K hd"]
    v: Float[Array, "L N p K hd"]
    groups: int = 1

    @property
    def per_group(self) -> int:
        """Pages of one group: the first page number that does not exist."""
        return self.k.shape[1] // self.groups

    def grouped(self, x: Float[Array, "*L N p K hd"]) -> Float[Array, "*L G n p K hd"]:
        """The page dimension of ``k``, ``v`` or one layer of them in two: group, page."""
        at = x.ndim - 4
        return x.reshape(*x.shape[:at], self.groups, self.per_group, *x.shape[at + 1 :])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """What B rows have cached, W tokens wide, in the order in which a matrix product reads it fastest.

    Of one layer; stacked over L where the model scans its layers.
    """

    k: Float[Array, "*L B K hd W"]
    v: Float[Array, "*L B K W hd"]


def empty_pages(
    layers: int, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: jnp.dtype, groups: int = 1
) -> Pages:
    """Raises ValueError when the groups cannot have equally many pages."""
    if pages % groups:
        raise ValueError(f"{pages} pages cannot be split over {groups} groups")
    shape = (layers, pages, page_size, kv_heads, head_dim)
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), groups)


def read_pages(pages: Pages, page_table: Int[Array, "B n"], layer: int | None = None) -> Prefix:
    """The pages of each row side by side, of one layer or stacked over all.

    Entries beyond a row's own pages may name any page of its group: what they hold is beyond the row's length.
    """
    size, heads, dim = pages.k.shape[2:]
    rows, count = page_table.shape

    def gather(layer: Float[Array, "N p K hd"]) -> Float[Array, "B n p K hd"]:
        if pages.groups == 1:  # without a batched gather, which compiles longer
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
    """Puts token (b, t) at ``slots[b, t]`` = page * p + place in the page; a slot beyond the last page is dropped."""

    def write(old, new):
        layers, _, _, heads, dim = old.shape
        new = new.astype(old.dtype)
        if pages.groups == 1:
            flat = old.reshape(layers, -1, heads, dim)
            return flat.at[:, slots].set(new, mode="drop").reshape(old.shape)
        flat = pages.grouped(old).reshape(layers, pages.groups, -1, heads, dim)
        new = new.reshape(layers, pages.groups, -1, heads, dim)
        where = slots.reshape(pages.groups, -1)
        one = jax.vmap(lambda x, y, at: x.at[:, at].set(y, mode="drop"), in_axes=(1, 1, 0), out_axes=1)
        return one(flat, new, where).reshape(old.shape)

    return Pages(write(pages.k, k), write(pages.v, v), pages.groups)


def copy_pages(pages: Pages, source: Int[Array, "G C"], target: Int[Array, "G C"]) -> Pages:
    """Copies whole pages within their groups; a target beyond the last page is dropped."""

    def one(x, source, target):
        return x.at[:, target].set(x[:, source], mode="drop")

    def copy(x):
        if pages.groups == 1:
            return one(x, source[0], target[0])
        return jax.vmap(one, in_axes=(1, 0, 0), out_axes=1)(pages.grouped(x), source, target).reshape(x.shape)

    return Pages(copy(pages.k), copy(pages.v), pages.groups)


def paged_attention(
    q: Float[Array, "B T H hd"],
    k: Float[Array, "B N K hd"],
    v: Float[Array, "B N K hd"],
    prefix: Prefix,
    prefix_lengths: Int[Array, "B"],
    seen: Bool[Array, "B T N"],
) -> Float[Array, "B T H hd"]:
    """Softmax attention over the cached prefix and N new tokens.

    Args:
        q: queries of the T tokens of this step.
        k, v: keys and values that this dispatch has made so far.
        prefix: one layer's gathered pages.
        prefix_lengths: cached tokens of each row; what lies beyond is ignored.
        seen: which of the new tokens each query attends to; at least itself.
    """
    batch, tokens, heads, dim = q.shape
    kv_heads, width = k.shape[2], prefix.v.shape[-2]
    grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, dim) * dim**-0.5
    queries = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)  # [B K G*T hd]

    def scores(product, visible):
        wide = product.reshape(batch, kv_heads, heads // kv_heads, tokens, -1)
        return jnp.where(visible, wide, jnp.finfo(jnp.float32).min)

    new = jnp.einsum("bkqd,bnkd->bkqn", queries, k, preferred_element_type=jnp.float32)
    new = scores(new, seen[:, None, None])
    top = new.max(-1, keepdims=True)
    if width:
        old = jnp.einsum("bkqd,bkdw->bkqw", queries, prefix.k, preferred_element_type=jnp.float32)
        old = scores(old, (jnp.arange(width) < prefix_lengths[:, None])[:, None, None, None])
        top = jnp.maximum(top, old.max(-1, keepdims=True))
    new = jnp.exp(new - top)
    total = new.sum(-1)
    flat = (batch, kv_heads, queries.shape[2])
    out = jnp.einsum("bkqn,bnkd->bkqd", new.reshape(*flat, -1).astype(v.dtype), v, preferred_element_type=jnp.float32)
    if width:
        old = jnp.exp(old - top)
        total += old.sum(-1)
        out += jnp.einsum(
            "bkqw,bkwd->bkqd", old.reshape(*flat, width).astype(v.dtype), prefix.v, preferred_element_type=jnp.float32
        )
    out = out.reshape(batch, kv_heads, heads // kv_heads, tokens, dim) / total[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, dim).astype(q.dtype)
