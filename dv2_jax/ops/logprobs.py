"""Log-probabilities of given tokens, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_logits(
    logits: Float[Array, "... V"], forbidden: Bool[Array, "V"] | None, temperature: float | Float[Array, ""]
) -> Float[Array, "... V"]:
    """The logits of the distribution that is sampled from and trained on: fp32, forbidden ids at -inf (a finite
    stand-in), divided by the temperature."""
    logits = logits.astype(jnp.float32) / temperature
    return logits if forbidden is None else jnp.where(forbidden, jnp.finfo(jnp.float32).min, logits)


def chunked_logprobs(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    forbidden: Bool[Array, "V"] | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
    """fp32 log-probability of each target, and the entropy (nats) of each distribution.

    Works on ``chunk`` tokens at a time and recomputes their logits in the backward pass. The entropy is a
    metric: no gradient flows through it.
    """
    count = hidden.shape[0]
    chunk = min(chunk, count)
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    head = head.astype(hidden.dtype)

    @jax.checkpoint
    def one(hidden, targets, head):
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        logits = masked_logits(logits, forbidden, temperature)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        constant, total = jax.lax.stop_gradient((logits, normaliser))
        entropy = total - jnp.sum(jnp.exp(constant - total[:, None]) * constant, axis=-1)
        return chosen - normaliser, entropy

    logprobs, entropy = jax.lax.map(lambda xs: one(*xs, head), (hidden, targets))
    return logprobs.reshape(-1)[:count], entropy.reshape(-1)[:count]
