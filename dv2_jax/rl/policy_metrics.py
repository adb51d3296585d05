"""What is logged of an RL update: sums over tokens on the device, means of a whole step on the host."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def mismatch(
    logprobs: Float[Array, "B T"], behavior_logprobs: Float[Array, "B T"], used: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Sums of the gap between trainer (pi) and sampler (mu) over the used tokens, and its largest value.

    k1 = log mu - log pi and k3 = pi/mu - 1 - log(pi/mu) both estimate KL(mu || pi) from mu's samples; k3 is never
    negative.
    """
    gap = jnp.where(used, logprobs - behavior_logprobs, 0.0)
    return {
        "gap_k1": -jnp.sum(gap),
        "gap_k3": jnp.sum(jnp.expm1(gap) - gap),
        "gap_abs": jnp.sum(jnp.abs(gap)),
        "ratio": jnp.sum(jnp.where(used, jnp.exp(gap), 0.0)),
        "gap_max": jnp.max(jnp.abs(gap)),
    }


def token_sums(
    used: Bool[Array, "B T"],
    advantages: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    at_clip: Mapping[str, Bool[Array, "B T"]],
) -> dict[str, Float[Array, ""]]:
    """Additive token statistics of a microbatch; `token_means` turns a step's sums into fractions."""

    def count(x):
        return jnp.sum(x).astype(jnp.float32)

    sums = {name: count(x) for name, x in at_clip.items()}
    sums["nonzero_advantage"] = count(used & (advantages != 0))
    sums["entropy"] = jnp.sum(jnp.where(used, entropy, 0.0))
    sums["loss_tokens"] = count(used)
    return sums


MEANS = (
    "gap_k1",
    "gap_k3",
    "gap_abs",
    "ratio",
    "clipped_high",
    "clipped_low",
    "dual_clipped",
    "nonzero_advantage",
    "entropy",
)


def token_means(combined: Mapping[str, float]) -> dict[str, float]:
    """Divide the token sums of a step by its number of loss tokens; everything else passes through."""
    tokens = max(combined["loss_tokens"], 1.0)
    return {name: value / tokens if name in MEANS else value for name, value in combined.items()}
