"""Device programs of the engine as pure functions: prefill, decode, image encoding and page copies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dv2_jax.engine.engine_sharding import EngineSharding
from dv2_jax.engine.sampling import sample, token_uniforms
from dv2_jax.engine.stop_strings import FINAL_STATES
from dv2_jax.model.params import GraphDef, Params, merge
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.paged_attention import Pages, cached_rows, copy_pages, write_pages
from dv2_jax.ops.scan_layers import unrolls
from dv2_jax.parallel.mesh import constrain_batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrefillBatch:
    """R rows of T tokens. Each row is the next prefill chunk of one sequence, after its prefix of n cached pages.

    Arrays are numpy on the host and traced in a program.
    """

    token_ids: Int[Any, "R T"]
    positions: Int[Any, "3 R T"]
    image_index: Int[Any, "R T"]  # row of the image-embedding cache; -1 for text
    slots: Int[Any, "R T"]  # slots that keys and values are written to; out of range for padding
    page_table: Int[Any, "R n"]
    cached: Int[Any, "R"]  # number of prefix tokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeBatch:
    """S rows. Each is a sequence whose last token is not in the KV cache yet; it is the first input.

    Arrays are numpy on the host and traced in a program.
    """

    token: Int[Any, "S"]
    position: Int[Any, "S"]  # M-RoPE position of that token, the same in all three components
    index: Int[Any, "S"]  # index of the next token in the sequence; determines its random number
    key: UInt32[Any, "S"]
    temperature: Float[Any, "S"]
    state: Int[Any, "S"]  # state of the stop automaton
    budget: Int[Any, "S"]  # tokens that the row may still sample; 0 for padding
    slots: Int[Any, "S K"]  # slots that this dispatch writes keys and values to
    page_table: Int[Any, "S n"]
    cached: Int[Any, "S"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeOutput:
    """Sampled tokens of a decode dispatch. Entries beyond a row's `count` are padding."""

    tokens: Int[Array, "S K"]
    logprobs: Float[Array, "S K"]
    count: Int[Array, "S"]  # number of sampled tokens
    state: Int[Array, "S"]


def prefill(
    graphdef: GraphDef, params: Params, pages: Pages, image_embeddings: Float[Array, "M D"], rows: PrefillBatch
) -> Pages:
    """Writes the keys and values of the batch's tokens into the KV cache."""
    model = merge(graphdef, params)
    tokens = rows.token_ids.shape[1]
    cached = cached_rows(pages, rows.page_table, rows.cached)
    causal = jnp.tril(jnp.ones((tokens, tokens), bool))[None]

    def attend(q, k, v, layer):
        return cached.attend(q, k, v, layer, causal), (k, v)

    embeds = constrain_batch(model.embed(rows.token_ids, image_embeddings, rows.image_index))
    _, fresh = model.hidden(embeds, rows.positions, attend, cached.layers)
    return write_pages(pages, *_stacked(fresh), rows.slots)


def decode(
    graphdef: GraphDef,
    params: Params,
    pages: Pages,
    seed: UInt32[Array, ""],
    stop_table: Int[Array, "Q V"],
    forbidden: Bool[Array, "V"],
    min_live: Int[Array, ""],
    rows: DecodeBatch,
) -> tuple[Pages, DecodeOutput]:
    """Samples up to K tokens for every row; a row ends at a final state of the stop automaton or with its budget.

    The dispatch ends when fewer than `min_live` rows have not ended: rows that go on continue in the next dispatch, with
    other rows in the place of those that have ended. Seed, stop table and forbidden ids are arguments instead of
    constants, so that other runs reuse the program.
    """
    model = merge(graphdef, params)
    count, steps = rows.slots.shape
    first_final = stop_table.shape[0] - FINAL_STATES
    cached = cached_rows(pages, rows.page_table, rows.cached)
    layers = pages.k.shape[0]
    empty = jnp.zeros((count, steps, pages.kv_heads, pages.head_dim), pages.k.dtype)
    fresh: Any = [(empty, empty)] * layers if unrolls(layers) else (jnp.stack([empty] * layers),) * 2

    def step(carry):
        j, token, fresh, state, left, tokens, logprobs = carry
        seen = (jnp.arange(steps) <= j)[None, None]

        def attend(q, new_k, new_v, cache):
            layer, (k, v) = cache
            k = jax.lax.dynamic_update_slice_in_dim(k, new_k.astype(k.dtype), j, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(v, new_v.astype(v.dtype), j, axis=1)
            return cached.attend(q, k, v, layer, seen), (k, v)

        positions = jnp.broadcast_to((rows.position + j)[None, :, None], (3, count, 1))
        cache = list(zip(cached.layers, fresh, strict=True)) if unrolls(layers) else (cached.layers, fresh)
        hidden, fresh = model.hidden(constrain_batch(model.embed(token[:, None])), positions, attend, cache)
        uniforms = token_uniforms(seed, rows.key, rows.index + j)
        sampled, logprob = sample(model.logits(hidden[:, 0]), uniforms, rows.temperature, forbidden)
        live = left > 0
        # A finished row repeats its last token; its outputs are masked until the loop ends for all rows.
        token = jnp.where(live, sampled, token)
        state = jnp.where(live, stop_table[state, token].astype(state.dtype), state)
        left = jnp.where(live & (state < first_final), left - 1, 0)
        tokens = tokens.at[:, j].set(jnp.where(live, token, -1))
        logprobs = logprobs.at[:, j].set(logprob)
        return j + 1, token, fresh, state, left, tokens, logprobs

    def more(carry):
        return (carry[0] < steps) & (jnp.sum(carry[4] > 0) >= min_live)

    tokens = jnp.full((count, steps), -1, jnp.int32)
    start = (0, rows.token, fresh, rows.state, rows.budget, tokens, jnp.zeros((count, steps), jnp.float32))
    _, _, fresh, state, _, tokens, logprobs = jax.lax.while_loop(more, step, start)
    done = tokens >= 0
    # Step j writes the key and value of its input; steps after the end of a row write to the padding slot.
    slots = jnp.where(done, rows.slots, pages.per_group * pages.page_size)
    return write_pages(pages, *_stacked(fresh), slots), DecodeOutput(tokens, logprobs, done.sum(-1), state)


def _stacked(fresh: tuple[Array, Array] | list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Returns new keys and values stacked over a leading layer dimension."""
    return jax.tree.map(lambda *layers: jnp.stack(layers), *fresh) if isinstance(fresh, list) else fresh


def encode(
    graphdef: GraphDef,
    params: Params,
    image_embeddings: Float[Array, "M D"],
    vision: VisionBatch,
    rows: Int[Array, "m"],
) -> Float[Array, "M D"]:
    """Writes the embeddings of a batch of images into the image-embedding cache; rows out of range are padding."""
    return image_embeddings.at[rows].set(
        merge(graphdef, params).encode_images(vision).astype(image_embeddings.dtype), mode="drop"
    )


@functools.lru_cache
def jit_functions(graphdef: GraphDef, sharding: EngineSharding) -> dict[str, Callable]:
    """Jits the four programs. KV pages and image embeddings are donated, so that they are updated in place.

    Sampled tokens are replicated, so that every process can read all of them.
    """

    def jit_with_donation(function: Callable, out: Any, donated: int) -> Callable:
        options = {} if sharding.rows is None else {"out_shardings": out}
        return jax.jit(function, donate_argnums=donated, **options)

    pages, replicated = sharding.pages, sharding.replicated
    return {
        "prefill": jit_with_donation(functools.partial(prefill, graphdef), pages, 1),
        "decode": jit_with_donation(functools.partial(decode, graphdef), (pages, replicated), 1),
        "encode": jit_with_donation(functools.partial(encode, graphdef), replicated, 1),
        "copy": jit_with_donation(copy_pages, pages, 0),
    }
