"""The device half: what prefill, decode, picture encoding and page copies compute. Pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dv2_jax.engine.engine_sharding import Placement
from dv2_jax.engine.sampling import sample, token_uniforms
from dv2_jax.engine.stop_strings import FINAL_STATES
from dv2_jax.model.params import GraphDef, Params, merge
from dv2_jax.model.text import UNROLL_LAYERS
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.paged_attention import Pages, Prefix, copy_pages, paged_attention, read_pages, write_pages
from dv2_jax.parallel.mesh import split_rows


def _pytree(cls):
    fields = list(cls.__annotations__)
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls), data_fields=fields, meta_fields=[])


@_pytree
class PrefillRows:
    """R rows of T tokens: each row is the next piece of one sequence, behind its n cached pages."""

    token_ids: Int[Array, "R T"]
    positions: Int[Array, "3 R T"]
    image_index: Int[Array, "R T"]  # row of the picture pool; -1: text
    slots: Int[Array, "R T"]  # where keys and values go; out of range: padding
    page_table: Int[Array, "R n"]
    cached: Int[Array, "R"]  # tokens of the prefix


@_pytree
class DecodeRows:
    """S rows: each is a sequence whose last token is not in the cache yet."""

    token: Int[Array, "S"]
    position: Int[Array, "S"]  # M-RoPE position of that token, alike in all three components
    index: Int[Array, "S"]  # index in the sequence of the next token; names its random number
    key: UInt32[Array, "S"]
    temperature: Float[Array, "S"]
    state: Int[Array, "S"]  # of the stop automaton
    budget: Int[Array, "S"]  # tokens that the row may still sample; 0: an empty row
    slots: Int[Array, "S K"]  # where the keys and values of this dispatch go
    page_table: Int[Array, "S n"]
    cached: Int[Array, "S"]


@_pytree
class Decoded:
    tokens: Int[Array, "S K"]
    logprobs: Float[Array, "S K"]
    count: Int[Array, "S"]  # tokens that were sampled
    state: Int[Array, "S"]


def prefill(graphdef: GraphDef, params: Params, pages: Pages, pool: Float[Array, "M D"], rows: PrefillRows) -> Pages:
    """Writes the keys and values of every row's tokens."""
    model = merge(graphdef, params)
    tokens = rows.token_ids.shape[1]
    prefix = _prefix(pages, rows.page_table)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))[None]

    def attend(q, k, v, prefix):
        return paged_attention(q, k, v, prefix, rows.cached, causal), (k, v)

    embeds = split_rows(model.embed(rows.token_ids, pool, rows.image_index))
    _, fresh = model.hidden(embeds, rows.positions, attend, prefix)
    return write_pages(pages, *_stacked(fresh), rows.slots)


def decode(
    graphdef: GraphDef,
    params: Params,
    pages: Pages,
    seed: UInt32[Array, ""],
    table: Int[Array, "Q V"],
    forbidden: Bool[Array, "V"],
    rows: DecodeRows,
) -> tuple[Pages, Decoded]:
    """Samples up to K tokens for every row; a row ends at a final state or with its budget.

    Seed, stop strings and forbidden ids are arguments: another run has other ones and the same program.
    """
    model = merge(graphdef, params)
    count, steps = rows.slots.shape
    first_final = table.shape[0] - FINAL_STATES
    prefix = _prefix(pages, rows.page_table)
    layers, _, page_size, heads, dim = pages.k.shape
    fresh = jnp.zeros((count, steps, heads, dim), pages.k.dtype)
    fresh = [(fresh, fresh)] * layers if isinstance(prefix, list) else (jnp.stack([fresh] * layers),) * 2

    def step(carry):
        j, token, fresh, state, left, tokens, logprobs = carry
        seen = (jnp.arange(steps) <= j)[None, None]

        def attend(q, new_k, new_v, cache):
            prefix, (k, v) = cache
            k = jax.lax.dynamic_update_slice_in_dim(k, new_k.astype(k.dtype), j, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(v, new_v.astype(v.dtype), j, axis=1)
            return paged_attention(q, k, v, prefix, rows.cached, seen), (k, v)

        positions = jnp.broadcast_to((rows.position + j)[None, :, None], (3, count, 1))
        cache = list(zip(prefix, fresh, strict=True)) if isinstance(prefix, list) else (prefix, fresh)
        hidden, fresh = model.hidden(split_rows(model.embed(token[:, None])), positions, attend, cache)
        uniforms = token_uniforms(seed, rows.key, rows.index + j)
        sampled, logprob = sample(model.logits(hidden[:, 0]), uniforms, rows.temperature, forbidden)
        live = left > 0
        # A row that has ended keeps its last token: it goes on computing beside the others, unseen.
        token = jnp.where(live, sampled, token)
        state = jnp.where(live, table[state, token].astype(state.dtype), state)
        left = jnp.where(live & (state < first_final), left - 1, 0)
        tokens = tokens.at[:, j].set(jnp.where(live, token, -1))
        logprobs = logprobs.at[:, j].set(logprob)
        return j + 1, token, fresh, state, left, tokens, logprobs

    def more(carry):
        return (carry[0] < steps) & jnp.any(carry[4] > 0)

    tokens = jnp.full((count, steps), -1, jnp.int32)
    start = (0, rows.token, fresh, rows.state, rows.budget, tokens, jnp.zeros((count, steps), jnp.float32))
    _, _, fresh, state, _, tokens, logprobs = jax.lax.while_loop(more, step, start)
    done = tokens >= 0
    # The input of step j is cached where step j sampled something.
    slots = jnp.where(done, rows.slots, pages.per_group * page_size)
    return write_pages(pages, *_stacked(fresh), slots), Decoded(tokens, logprobs, done.sum(-1), state)


def _prefix(pages: Pages, page_table: Int[Array, "B n"]) -> Prefix | list[Prefix]:
    """What the rows have cached: layer by layer where the model's layers are unrolled, stacked where scanned."""
    layers = pages.k.shape[0]
    if layers > UNROLL_LAYERS:
        return read_pages(pages, page_table)
    return [read_pages(pages, page_table, layer) for layer in range(layers)]


def _stacked(fresh: tuple[Array, Array] | list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """New keys and values with the layers leading."""
    return jax.tree.map(lambda *layers: jnp.stack(layers), *fresh) if isinstance(fresh, list) else fresh


def encode(
    graphdef: GraphDef, params: Params, pool: Float[Array, "M D"], vision: VisionBatch, rows: Int[Array, "m"]
) -> Float[Array, "M D"]:
    """Puts the merged embeddings of a batch of pictures into the pool; rows out of range are padding."""
    return pool.at[rows].set(merge(graphdef, params).encode_images(vision).astype(pool.dtype), mode="drop")


@functools.lru_cache
def jitted(graphdef: GraphDef, placement: Placement) -> dict[str, Callable]:
    """The four programs by name; the cache and the pool are donated, so they are never held twice.

    What a decode dispatch returns lies on every device: each process reads all of it.
    """

    def made(function: Callable, out: Any, donated: int) -> Callable:
        options = {} if placement.rows is None else {"out_shardings": out}
        return jax.jit(function, donate_argnums=donated, **options)

    pages, whole = placement.pages, placement.whole
    return {
        "prefill": made(functools.partial(prefill, graphdef), pages, 1),
        "decode": made(functools.partial(decode, graphdef), (pages, whole), 1),
        "encode": made(functools.partial(encode, graphdef), whole, 1),
        "copy": made(copy_pages, pages, 0),
    }
