"""CISPO: REINFORCE with a clipped importance weight, so that no token loses its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens, clip_range, policy_loss


@policy_loss("cispo", zero_at_zero_advantage=True)
def cispo(tokens: LossTokens, config: RLConfig):
    """Compute l = -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi, where sg stops the gradient.

    Source: MiniMax-M1, arXiv 2506.13585, eq. 4; `clip_low` = 1 leaves small ratios as they are.

    The masks are the tokens whose weight is clipped: `clipped_high` and `clipped_low`.
    """
    low, high = clip_range(config)
    ratio = jnp.exp(tokens.log_ratio())
    weight = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
    return -weight * tokens.advantages * tokens.logprobs, {
        "clipped_high": tokens.response_mask & (ratio > high),
        "clipped_low": tokens.response_mask & (ratio < low),
    }
