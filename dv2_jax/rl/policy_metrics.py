"""Metrics of an RL step: token sums per microbatch on the device, token means of the step on the host."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def rollout_mismatch_metrics(
    logprobs: Float[Array, "B T"], behavior_logprobs: Float[Array, "B T"], response_mask: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Sum the log-prob gap between trainer (pi) and sampler (mu) over the response tokens, and take its maximum.

    k1 = log mu - log pi and k3 = pi/mu - 1 - log(pi/mu) both estimate KL(mu || pi) from samples of mu; k3 is never
    negative (Schulman, "Approximating KL Divergence").
    """
    gap = jnp.where(response_mask, logprobs - behavior_logprobs, 0.0)
    return {
        "logprob_gap_k1": -jnp.sum(gap),
        "logprob_gap_k3": jnp.sum(jnp.expm1(gap) - gap),
        "logprob_gap_abs": jnp.sum(jnp.abs(gap)),
        "ratio": jnp.sum(jnp.where(response_mask, jnp.exp(gap), 0.0)),
        "logprob_gap_max": jnp.max(jnp.abs(gap)),
    }


def token_metric_sums(
    response_mask: Bool[Array, "B T"],
    advantages: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    token_metrics: Mapping[str, Array],
) -> dict[str, Float[Array, ""]]:
    """Sum the token metrics of a microbatch; sums add over microbatches, see `token_metric_means`.

    `token_metrics` are the arrays of shape [B T] that the objective returns, False or 0 outside the response mask.
    """

    def total(values):
        return jnp.sum(values).astype(jnp.float32)

    sums = {name: total(values) for name, values in token_metrics.items()}
    sums["nonzero_advantage"] = total(response_mask & (advantages != 0))
    sums["entropy"] = jnp.sum(jnp.where(response_mask, entropy, 0.0))
    sums["loss_tokens"] = total(response_mask)
    return sums


# Metrics of an optimizer step that are not sums over tokens; nor are those whose name ends in "_max".
STEP_METRICS = ("loss", "loss_tokens", "grad_norm", "learning_rate")


def token_metric_means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Divide the token sums of a step by its number of loss tokens; other metrics are returned unchanged."""
    tokens = max(metrics["loss_tokens"], 1.0)
    return {
        name: value if name in STEP_METRICS or name.endswith("_max") else value / tokens
        for name, value in metrics.items()
    }
