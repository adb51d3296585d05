"""The objective of a microbatch: the policy loss and the KL term, aggregated by token weights and a denominator."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dv2_jax.config import RLConfig
from dv2_jax.rl.algorithms import resolve_algorithm
from dv2_jax.rl.loss_registry import MAX_LOG_RATIO, LossTokens, get_policy_loss


def reference_kl(
    logprobs: Float[Array, "B T"], reference_logprobs: Float[Array, "B T"], response_mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Estimate KL(policy || reference) per token: k3 = q/p - 1 - log(q/p), never negative; 0 outside the mask.

    Source: Schulman, "Approximating KL Divergence"; the log-ratio is clamped to ±20 as in verl.
    """
    gap = jnp.where(response_mask, reference_logprobs - logprobs, 0.0)
    log_ratio = jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.exp(log_ratio) - log_ratio - 1.0


def make_objective(config: RLConfig) -> Callable[..., tuple[Float[Array, ""], dict[str, Array]]]:
    """Build `objective(...)`, the loss of a microbatch as a function of its log-probs.

    `weight` and `denominator` carry the aggregation (see `rl.aggregation`), so that microbatch losses and gradients
    add. The loss tokens are those with a positive weight. With `reference_logprobs`, `kl_coefficient` times
    `reference_kl` is added to the loss of every token.

    The objective returns the loss, and per-token arrays for the metrics: the masks of the policy loss, and
    `kl_reference` with `reference_logprobs`.

    Raises:
        ConfigError: a loss, option, advantage or aggregation does not exist.
    """
    config = resolve_algorithm(config)
    token_loss = get_policy_loss(config)

    def objective(
        logprobs: Float[Array, "B T"],
        old_logprobs: Float[Array, "B T"],
        advantages: Float[Array, "B T"],
        weight: Float[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        denominator: Float[Array, ""],
        reference_logprobs: Float[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        response_mask = weight > 0
        tokens = LossTokens(logprobs, old_logprobs, advantages, response_mask, segment_ids)
        loss, token_metrics = token_loss(tokens, config)
        if reference_logprobs is not None:
            kl = reference_kl(logprobs, reference_logprobs, response_mask)
            loss = loss + config.kl_coefficient * kl
            token_metrics = {**token_metrics, "kl_reference": kl}
        return jnp.sum(jnp.where(response_mask, loss * weight, 0.0)) / denominator, token_metrics

    return objective
