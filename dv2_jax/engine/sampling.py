"""One token per row from the distribution that the trainer scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from dv2_jax.engine.stop_strings import ByteVocabulary
from dv2_jax.ops.logprobs import masked_logits


def forbidden_ids(tokenizer: ByteVocabulary, vocab_size: int, eos_ids: frozenset[int]) -> Bool[np.ndarray, "V"]:
    """Ids that the policy may not sample: control tokens but the end of turn, and ids that mean nothing.

    A sampled picture placeholder would have no picture, a sampled ``<|im_start|>`` would forge a role.
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
    """One uniform of [0, 1) per row: a function of (run seed, trajectory key, position of the token) alone."""
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
    """The token at ``uniforms`` in the cumulative distribution, and its fp32 log-prob.

    A temperature of 0 takes the likeliest token and reports its log-prob at temperature 1. One uniform per token
    instead of V Gumbel numbers: those cost a CPU as much as the layers of a small model.
    """
    greedy = temperature == 0
    logits = masked_logits(logits, forbidden, jnp.where(greedy, 1.0, temperature)[:, None])
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    drawn = _inverse_cdf(jnp.exp(logprobs), uniforms)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]


def _inverse_cdf(probabilities: Float[Array, "S V"], uniforms: Float[Array, "S"]) -> Int[Array, "S"]:
    """First token whose cumulative probability exceeds the uniform; never one of probability 0.

    In two levels, blocks of about sqrt(V) tokens and the tokens of one block: a running sum over a whole
    vocabulary is slow, and less exact.
    """
    rows, vocab = probabilities.shape
    block = 1 << ((vocab - 1).bit_length() + 1) // 2
    blocks = jnp.pad(probabilities, ((0, 0), (0, -vocab % block))).reshape(rows, -1, block)
    chosen, rest = _first_above(blocks.sum(-1), uniforms)
    inside = jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]
    token, _ = _first_above(inside, rest)
    return chosen * block + token


def _first_above(masses: Float[Array, "S N"], point: Float[Array, "S"]) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """The interval of cumulated masses that holds ``point``, a share of the total; where in it, as a share."""
    cumulated = jnp.cumsum(masses, axis=-1)
    # Strictly below the total, whatever rounding did: some interval is then found, and not an empty one.
    point = jnp.minimum(point * cumulated[:, -1], jnp.nextafter(cumulated[:, -1], 0.0))[:, None]
    chosen = jnp.argmax(cumulated > point, axis=-1)[:, None]
    mass = jnp.take_along_axis(masses, chosen, axis=-1)
    below = jnp.take_along_axis(cumulated, chosen, axis=-1) - mass
    return chosen[:, 0], jnp.clip((point - below) / mass, 0.0, 1.0)[:, 0]
