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
    """Keys and values of N pages of p tokens, all layers."""

    k: Float[Array, "L N p K hd"]
    v: Float[Array, "L N p K hd"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """What B rows have cached, W tokens wide, in the order in which a matrix product reads it fastest.

    The model scans the layers away: inside `paged_attention` the leading L is gone.
    """

    k: Float[Array, "L B K hd W"]
    v: Float[Array, "L B K W hd"]


def empty_pages(layers: int, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: jnp.dtype) -> Pages:
    shape = (layers, pages, page_size, kv_heads, head_dim)
    return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def read_pages(pages: Pages, page_table: Int[Array, "B n"], layer: int | None = None) -> Prefix:
    """The pages of each row side by side, of all layers or of one.

    Entries beyond a row's own pages may name any page: what they hold is beyond the row's length.
    """
    where = slice(None) if layer is None else slice(layer, layer + 1)
    layers, _, size, heads, dim = pages.k[where].shape
    rows, count = page_table.shape
    k = pages.k[where][:, page_table].transpose(0, 1, 4, 5, 2, 3).reshape(layers, rows, heads, dim, count * size)
    v = pages.v[where][:, page_table].transpose(0, 1, 4, 2, 3, 5).reshape(layers, rows, heads, count * size, dim)
    return Prefix(k, v) if layer is None else Prefix(k[0], v[0])


def write_pages(
    pages: Pages, k: Float[Array, "L B T K hd"], v: Float[Array, "L B T K hd"], slots: Int[Array, "B T"]
) -> Pages:
    """Puts token (b, t) at ``slots[b, t]`` = page * p + place in the page; a slot beyond the last page is dropped."""

    def write(old, new):
        layers, count, size = old.shape[:3]
        flat = old.reshape(layers, count * size, *old.shape[3:])
        return flat.at[:, slots].set(new.astype(old.dtype), mode="drop").reshape(old.shape)

    return Pages(write(pages.k, k), write(pages.v, v))


def copy_pages(pages: Pages, source: Int[Array, "C"], target: Int[Array, "C"]) -> Pages:
    """Copies whole pages; a target beyond the last page is dropped."""

    def copy(x):
        return x.at[:, target].set(x[:, source], mode="drop")

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
