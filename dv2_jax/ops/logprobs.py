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
    """fp32 log-probability of each target, and the entropy (nats) of each distribution; see `row_logprobs`."""
    logprobs, entropy = row_logprobs(
        hidden[None], head, targets[None], temperature=temperature, forbidden=forbidden, chunk=chunk
    )
    return logprobs[0], entropy[0]


def row_logprobs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    forbidden: Bool[Array, "V"] | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """fp32 log-probability of each target, and the entropy (nats) of each distribution.

    Works on ``chunk`` tokens at a time (a stretch of every row) and recomputes their logits in the backward pass. The
    rows stay apart, so that rows which lie on different devices are worked on by all of them at once. The entropy is
    a metric: no gradient flows through it.
    """
    rows, count, width = hidden.shape
    stretch = min(count, max(1, chunk // rows))
    padding = -count % stretch
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(rows, -1, stretch, width).swapaxes(0, 1)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, -1, stretch).swapaxes(0, 1)
    head = head.astype(hidden.dtype)

    @jax.checkpoint
    def one(hidden, targets, head):
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        logits = masked_logits(logits, forbidden, temperature)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        constant, total = jax.lax.stop_gradient((logits, normaliser))
        entropy = total - jnp.sum(jnp.exp(constant - total[..., None]) * constant, axis=-1)
        return chosen - normaliser, entropy

    logprobs, entropy = jax.lax.map(lambda xs: one(*xs, head), (hidden, targets))

    def in_rows(x):
        return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

    return in_rows(logprobs), in_rows(entropy)
