"""Log-probabilities of given tokens, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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
    a metric, and the temperature is given: no gradient flows to either.
    """
    rows, count, width = hidden.shape
    stretch = min(count, max(1, chunk // rows))
    padding = -count % stretch
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(rows, -1, stretch, width).swapaxes(0, 1)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, -1, stretch).swapaxes(0, 1)
    results = _stretches(hidden, head.astype(hidden.dtype), targets, jnp.float32(temperature), forbidden)
    logprobs, entropy = (x.swapaxes(0, 1).reshape(rows, -1)[:, :count] for x in results)
    return logprobs, entropy


@jax.custom_vjp
def _stretches(
    hidden: Float[Array, "n B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "n B S"],
    temperature: Float[Array, ""],
    forbidden: Bool[Array, "V"] | None,
) -> tuple[Float[Array, "n B S"], Float[Array, "n B S"]]:
    return _forward(hidden, head, targets, temperature, forbidden)[0]


def _logits(hidden, head, temperature, forbidden):
    return masked_logits(jnp.matmul(hidden, head, preferred_element_type=jnp.float32), forbidden, temperature)


def _forward(hidden, head, targets, temperature, forbidden):
    def one(xs):
        hidden, targets = xs
        logits = _logits(hidden, head, temperature, forbidden)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        entropy = normalizer - jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)
        return chosen - normalizer, entropy, normalizer

    logprobs, entropy, normalizer = jax.lax.map(one, (hidden, targets))
    return (logprobs, entropy), (hidden, head, targets, temperature, forbidden, normalizer)


def _backward(saved, gradients):
    """With the normalizer at hand nothing is summed over the vocabulary: the gradient of the logits is made where their
    product is, and only ever exists in the narrow type that the two products after it read."""
    hidden, head, targets, temperature, forbidden, normalizer = saved
    vocabulary = jnp.arange(head.shape[1])

    def one(head_gradient, xs):
        hidden, targets, normalizer, gradient = xs
        p = jnp.exp(_logits(hidden, head, temperature, forbidden) - normalizer[..., None])
        change = ((targets[..., None] == vocabulary) - p) * (gradient / temperature)[..., None]
        if forbidden is not None:
            change = jnp.where(forbidden, 0.0, change)
        change = change.astype(hidden.dtype)
        product = jnp.einsum("bsd,bsv->dv", hidden, change, preferred_element_type=jnp.float32)
        return head_gradient + product.astype(head.dtype), jnp.einsum("bsv,dv->bsd", change, head)

    xs = (hidden, targets, normalizer, gradients[0])
    head_gradient, hidden_gradient = jax.lax.scan(one, jnp.zeros_like(head), xs)
    none = None if forbidden is None else np.zeros(forbidden.shape, jax.dtypes.float0)
    return hidden_gradient, head_gradient, np.zeros(targets.shape, jax.dtypes.float0), jnp.zeros_like(temperature), none


_stretches.defvjp(_forward, _backward)
