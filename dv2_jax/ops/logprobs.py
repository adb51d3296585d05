"""Log-probabilities of given tokens, computed in chunks so that [tokens, vocabulary] is never materialized."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def masked_logits(
    logits: Float[Array, "... V"],
    forbidden: Bool[Array | np.ndarray, "V"] | None,
    temperature: float | Float[Array, ""],
) -> Float[Array, "... V"]:
    """Returns the logits that sampling and training share: fp32, divided by the temperature, forbidden ids at the lowest
    finite value instead of -inf."""
    logits = logits.astype(jnp.float32) / temperature
    return logits if forbidden is None else jnp.where(forbidden, jnp.finfo(jnp.float32).min, logits)


def chunked_logprobs(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    forbidden: Bool[Array | np.ndarray, "V"] | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
    """Returns fp32 log-probabilities of the targets and entropies (nats) of the distributions; see `row_logprobs`."""
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
    forbidden: Bool[Array | np.ndarray, "V"] | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns fp32 log-probabilities of the targets and entropies (nats) of the distributions.

    Processes about `chunk` tokens at a time (the same columns of every row) and recomputes their logits in the backward
    pass. The batch dimension is kept, so that a sharded batch is processed by all devices in parallel. No gradient
    flows to the entropy, which is a metric, or to the temperature.
    """
    rows, count, width = hidden.shape
    columns = min(count, max(1, chunk // rows))
    padding = -count % columns
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(rows, -1, columns, width).swapaxes(0, 1)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, -1, columns).swapaxes(0, 1)
    results = _chunked_logprobs(hidden, head.astype(hidden.dtype), targets, jnp.float32(temperature), forbidden)
    logprobs, entropy = (x.swapaxes(0, 1).reshape(rows, -1)[:, :count] for x in results)
    return logprobs, entropy


@jax.custom_vjp
def _chunked_logprobs(
    hidden: Float[Array, "n B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "n B S"],
    temperature: Float[Array, ""],
    forbidden: Bool[Array | np.ndarray, "V"] | None,
) -> tuple[Float[Array, "n B S"], Float[Array, "n B S"]]:
    return _forward(hidden, head, targets, temperature, forbidden)[0]


def _logits(hidden, head, temperature, forbidden):
    return masked_logits(jnp.matmul(hidden, head, preferred_element_type=jnp.float32), forbidden, temperature)


def _forward(hidden, head, targets, temperature, forbidden):
    def one_chunk(xs):
        hidden, targets = xs
        logits = _logits(hidden, head, temperature, forbidden)
        lse = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        entropy = lse - jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
        return chosen - lse, entropy, lse

    logprobs, entropy, lse = jax.lax.map(one_chunk, (hidden, targets))
    return (logprobs, entropy), (hidden, head, targets, temperature, forbidden, lse)


def _backward(saved, gradients):
    """Uses the saved log-sum-exp, so no vocabulary reduction is needed. dlogits is fused with the logits matmul and
    materialized only in the compute dtype."""
    hidden, head, targets, temperature, forbidden, lse = saved
    vocabulary = jnp.arange(head.shape[1])

    def one_chunk(head_gradient, xs):
        hidden, targets, lse, gradient = xs
        p = jnp.exp(_logits(hidden, head, temperature, forbidden) - lse[..., None])
        dlogits = ((targets[..., None] == vocabulary) - p) * (gradient / temperature)[..., None]
        if forbidden is not None:
            dlogits = jnp.where(forbidden, 0.0, dlogits)
        dlogits = dlogits.astype(hidden.dtype)
        product = jnp.einsum("bsd,bsv->dv", hidden, dlogits, preferred_element_type=jnp.float32)
        return head_gradient + product.astype(head.dtype), jnp.einsum("bsv,dv->bsd", dlogits, head)

    xs = (hidden, targets, lse, gradients[0])
    head_gradient, hidden_gradient = jax.lax.scan(one_chunk, jnp.zeros_like(head), xs)
    no_targets = np.zeros(targets.shape, jax.dtypes.float0)
    no_forbidden = None if forbidden is None else np.zeros(forbidden.shape, jax.dtypes.float0)
    return hidden_gradient, head_gradient, no_targets, jnp.zeros_like(temperature), no_forbidden


_chunked_logprobs.defvjp(_forward, _backward)
