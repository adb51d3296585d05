"""The clipped surrogate of PPO with a dual clip: the loss of GRPO, DAPO, Dr. GRPO and DeepEyesV2."""

from __future__ import annotations

import jax.numpy as jnp

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens, clip_range, policy_loss


@policy_loss("ppo_clip", zero_at_zero_advantage=True)
def ppo_clip(tokens: LossTokens, config: RLConfig):
    """Compute l = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) with r = exp(clamp(log pi - log mu, -20, 20)).

    Where A < 0 and dual_clip c > 0, l = min(l, -c A) (Ye et al. 2019, arXiv 1912.09729; DeepEyesV2 spec 6.2).

    The masks are the tokens at which each clip is active: `clipped_high`, `clipped_low` and, with dual clip,
    `dual_clipped`.
    """
    advantages, response_mask = tokens.advantages, tokens.response_mask
    low, high = clip_range(config)
    ratio = jnp.exp(tokens.log_ratio())
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * jnp.clip(ratio, low, high)
    loss = jnp.maximum(unclipped_loss, clipped_loss)
    clip_masks = {
        "clipped_high": response_mask & (advantages > 0) & (ratio > high),
        "clipped_low": response_mask & (advantages < 0) & (ratio < low),
    }
    if config.dual_clip:
        max_loss = -config.dual_clip * advantages
        clip_masks["dual_clipped"] = response_mask & (advantages < 0) & (loss > max_loss)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, max_loss), loss)
    return loss, clip_masks
