"""Samples one token per row from the distribution that the trainer computes log-probs of."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from dv2_jax.engine.stop_strings import ByteVocabulary
from dv2_jax.ops.logprobs import masked_logits


class ControlVocabulary(ByteVocabulary, Protocol):
    """A vocabulary that knows its control tokens."""

    @property
    def control_ids(self) -> frozenset[int]: ...


def forbidden_ids(tokenizer: ControlVocabulary, vocab_size: int, eos_ids: frozenset[int]) -> Bool[np.ndarray, "V"]:
    """Returns a mask of the ids that the policy may not sample: control tokens except `eos_ids`, and unused ids.

    A sampled image placeholder would have no image; a sampled `<|im_start|>` would forge a role.
    """
    forbidden = np.ones(vocab_size, bool)
    for id_ in range(min(vocab_size, tokenizer.vocab_size)):
        try:
            tokenizer.token_bytes(id_)
        except KeyError:
            continue
        forbidden[id_] = id_ in tokenizer.control_ids and id_ not in eos_ids
    return forbidden


def token_uniforms(
    seed: int | UInt32[Array, ""], keys: UInt32[Array, "S"], positions: Int[Array, "S"]
) -> Float[Array, "S"]:
    """Draws one uniform of [0, 1) per row, a function of (run seed, trajectory key, token position) only."""
    root = jax.random.key(seed)

    def one(key, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(root, key), position))

    return jax.vmap(one)(keys, positions)


def sample(
    logits: Float[Array, "S V"],
    uniforms: Float[Array, "S"],
    temperature: Float[Array, "S"],
    forbidden: Bool[Array, "V"],
) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """Samples a token per row by inverse-CDF sampling; returns tokens and their fp32 log-probs.

    Temperature 0 is greedy and reports the log-prob at temperature 1. Inverse-CDF sampling needs one uniform per token;
    the V Gumbel numbers of the Gumbel-max trick cost a CPU as much as the layers of a small model.
    """
    greedy = temperature == 0
    logits = masked_logits(logits, forbidden, jnp.where(greedy, 1.0, temperature)[:, None])
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    drawn = _inverse_cdf(jnp.exp(logprobs), uniforms)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]


def _inverse_cdf(probabilities: Float[Array, "S V"], uniforms: Float[Array, "S"]) -> Int[Array, "S"]:
    """Returns the first token whose cumulative probability exceeds the uniform; never one of probability 0.

    Searches in two levels, blocks of about sqrt(V) tokens and then the tokens of one block: a cumulative sum over the
    entire vocabulary is slower and less accurate.
    """
    rows, vocab = probabilities.shape
    block = 1 << ((vocab - 1).bit_length() + 1) // 2
    blocks = jnp.pad(probabilities, ((0, 0), (0, -vocab % block))).reshape(rows, -1, block)
    chosen, rest = _searchsorted(blocks.sum(-1), uniforms)
    inside = jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]
    token, _ = _searchsorted(inside, rest)
    return chosen * block + token


def _searchsorted(weights: Float[Array, "S N"], u: Float[Array, "S"]) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """Finds the interval of the cumulative weights that contains `u * total`; returns index and fraction inside it."""
    cumulative = jnp.cumsum(weights, axis=-1)
    # Clip strictly below the total: rounding could otherwise select no interval or one of weight 0.
    u = jnp.minimum(u * cumulative[:, -1], jnp.nextafter(cumulative[:, -1], 0.0))[:, None]
    chosen = jnp.argmax(cumulative > u, axis=-1)[:, None]
    mass = jnp.take_along_axis(weights, chosen, axis=-1)
    below = jnp.take_along_axis(cumulative, chosen, axis=-1) - mass
    return chosen[:, 0], jnp.clip((u - below) / mass, 0.0, 1.0)[:, 0]
