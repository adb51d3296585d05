"""The clipped policy-gradient loss and the presets that name its variants."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dv2_jax.config import RLConfig

MAX_LOG_RATIO = 20.0  # as released: exp stays finite for any two policies

# What each algorithm means; a field that the user set to something else than the default of RLConfig stays his.
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


def with_algorithm(config: RLConfig) -> RLConfig:
    """`config` with the values that its algorithm stands for, in every field left at its default."""
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
    """Clipped surrogate, summed with `weight` and divided by `denominator`; and which tokens were clipped.

    Per token, with r = exp(clamp(logp - old, -20, 20)): l = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); where
    A < 0 and dual_clip c > 0, l = min(l, -c A) (DeepEyesV2 spec 6.2). With `reference_logprobs` the k3 estimate of the
    divergence from the reference is added, times `kl_coefficient`.

    The aggregation is in `weight` and `denominator`, so that microbatch losses add (see `rl.batch`): mask and number of
    masked tokens of the whole step for the token mean; mask over the length of its own sequence, and number of
    sequences, for the sequence mean.
    """
    # Padding holds arbitrary log-probs; inf or nan there must not reach the gradient through 0 * nan.
    used = weight > 0
    log_ratio = jnp.clip(jnp.where(used, logprobs - old_logprobs, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    loss = jnp.maximum(plain, clipped)
    at_clip = {
        "clipped_high": used & (advantages > 0) & (ratio > 1.0 + config.clip_high),
        "clipped_low": used & (advantages < 0) & (ratio < 1.0 - config.clip_low),
    }
    if config.dual_clip > 0:
        ceiling = -config.dual_clip * advantages
        at_clip["dual_clipped"] = used & (advantages < 0) & (loss > ceiling)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, ceiling), loss)
    if reference_logprobs is not None:
        away = jnp.clip(jnp.where(used, reference_logprobs - logprobs, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)
        loss = loss + config.kl_coefficient * (jnp.exp(away) - away - 1.0)
    return jnp.sum(jnp.where(used, loss * weight, 0.0)) / denominator, at_clip
