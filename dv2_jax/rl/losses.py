"""The clipped policy-gradient loss (PPO clip with dual clip and optional KL term) and its named presets."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dv2_jax.config import RLConfig

MAX_LOG_RATIO = 20.0  # as released: keeps exp finite for any pair of policies

# Values that each algorithm sets; a field whose value differs from the default of RLConfig is kept.
ALGORITHMS = {
    "dapo": {},  # the defaults: token mean over the global batch, clip 0.2/0.3 (paper 5.1)
    "released": {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": 3.0,
        "loss_aggregation": "sequence_mean",
        "normalize_std": True,
    },
}


def resolve_algorithm(config: RLConfig) -> RLConfig:
    """Return `config` with the values of its algorithm in every field that has its default."""
    defaults = RLConfig()
    chosen = ALGORITHMS[config.algorithm]
    return dataclasses.replace(
        config, **{k: v for k, v in chosen.items() if getattr(config, k) == getattr(defaults, k)}
    )


def policy_loss(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    weight: Float[Array, "B T"],
    config: RLConfig,
    denominator: Float[Array, ""],
    reference_logprobs: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Bool[Array, "B T"]]]:
    """Compute the clipped surrogate loss, summed with `weight` and divided by `denominator`.

    Per token, with r = exp(clamp(logp - old, -20, 20)): l = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); where
    A < 0 and dual_clip c > 0, l = min(l, -c A) (DeepEyesV2 spec 6.2). With `reference_logprobs`, `kl_coefficient` times
    the k3 estimate of KL(policy || reference) is added.

    `weight` and `denominator` carry the aggregation, so that microbatch losses and gradients add (see `rl.batch`). For
    the token mean they are the response mask and the number of response tokens of the step; for the sequence mean the
    response mask divided by the response length, and the number of sequences.

    Returns:
        The loss and the masks of the tokens at which each clip is active: `clipped_high`, `clipped_low` and, with dual
        clip, `dual_clipped`.
    """
    # The log-probs of padding are arbitrary; the mask is applied before exp so that no 0 * nan reaches the gradient.
    response_mask = weight > 0
    log_ratio = jnp.clip(jnp.where(response_mask, logprobs - old_logprobs, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    loss = jnp.maximum(unclipped_loss, clipped_loss)
    clip_masks = {
        "clipped_high": response_mask & (advantages > 0) & (ratio > 1.0 + config.clip_high),
        "clipped_low": response_mask & (advantages < 0) & (ratio < 1.0 - config.clip_low),
    }
    if config.dual_clip > 0:
        max_loss = -config.dual_clip * advantages
        clip_masks["dual_clipped"] = response_mask & (advantages < 0) & (loss > max_loss)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, max_loss), loss)
    if reference_logprobs is not None:
        reference_gap = jnp.where(response_mask, reference_logprobs - logprobs, 0.0)
        log_ratio_ref = jnp.clip(reference_gap, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        loss = loss + config.kl_coefficient * (jnp.exp(log_ratio_ref) - log_ratio_ref - 1.0)
    return jnp.sum(jnp.where(response_mask, loss * weight, 0.0)) / denominator, clip_masks
