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


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=[])
@dataclass(frozen=True)
class Pages:
    """Keys and values of N pages of p tokens in each of G groups, all layers.

    A group's pages lie on the devices that compute its rows, and page numbers count within the group: reading and
    writing then never crosses devices. Row b of B belongs to group b // (B / G).
    """

    k: Float[Array, "L G N p K hd"]
    v: Float[Array, "L G N p K hd"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """What B rows have cached, W tokens wide, in the order in which a matrix product reads it fastest.

    Of one layer; stacked over L where the model scans its layers.
    """

    k: Float[Array, "*L B K hd W"]
    v: Float[Array, "*L B K W hd"]


def empty_pages(
    layers: int, groups: int, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> Pages:
    shape = (layers, groups, pages, page_size, kv_heads, head_dim)
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def read_pages(pages: Pages, page_table: Int[Array, "B n"], layer: int | None = None) -> Prefix:
    """The pages of each row side by side, of one layer or stacked over all.

    Entries beyond a row's own pages may name any page of its group: what they hold is beyond the row's length.
    """
    groups, _, size, heads, dim = pages.k.shape[1:]
    rows, count = page_table.shape
    table = page_table.reshape(groups, rows // groups, count)

    def gather(layer: Float[Array, "G N p K hd"]) -> Float[Array, "B n p K hd"]:
        # One group goes without a batched gather, which compiles longer.
        found = layer[0][table[0]] if groups == 1 else jax.vmap(lambda x, t: x[t])(layer, table)
        return found.reshape(rows, count, size, heads, dim)

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
    groups = pages.k.shape[1]

    def one(old, new, slots):  # [N p K hd], [R T K hd], [R T]
        flat = old.reshape(-1, *old.shape[2:])
        return flat.at[slots].set(new.astype(old.dtype), mode="drop").reshape(old.shape)

    def write(old, new):
        new = new.reshape(new.shape[0], groups, -1, *new.shape[2:])
        where = slots.reshape(groups, -1, slots.shape[1])
        if groups == 1:  # one scatter of all layers: their windows are updated together
            layers, _, count, size = old.shape[:4]
            flat = old.reshape(layers, count * size, *old.shape[4:])
            return flat.at[:, where[0]].set(new[:, 0].astype(old.dtype), mode="drop").reshape(old.shape)
        return jax.vmap(jax.vmap(one), in_axes=(0, 0, None))(old, new, where)

    return Pages(write(pages.k, k), write(pages.v, v))


def copy_pages(pages: Pages, source: Int[Array, "G C"], target: Int[Array, "G C"]) -> Pages:
    """Copies whole pages within their groups; a target beyond the last page is dropped."""

    def one(x, source, target):
        return x.at[:, target].set(x[:, source], mode="drop")

    def copy(x):
        return jax.vmap(one, in_axes=(1, 0, 0), out_axes=1)(x, source, target)

    return Pages(copy(pages.k), copy(pages.v))


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
    out = jnp.einsum(
        "bkqn,bnkd->bkqd", new.reshape(*flat, -1).astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    if width:
        old = jnp.exp(old - top)
        total += old.sum(-1)
        out += jnp.einsum(
            "bkqw,bkwd->bkqd", old.reshape(*flat, width).astype(v.dtype), prefix.v, preferred_element_type=jnp.float32
        )
    out = out.reshape(batch, kv_heads, heads // kv_heads, tokens, dim) / total[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, dim).astype(q.dtype)
