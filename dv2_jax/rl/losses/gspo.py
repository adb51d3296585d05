"""Group sequence policy optimization: the clipped surrogate with one ratio per sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens, clip_range, policy_loss


@policy_loss("gspo", zero_at_zero_advantage=True)
def gspo(tokens: LossTokens, config: RLConfig):
    """Compute l = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)) with the geometric mean ratio s of the sequence.

    s = exp(mean over the loss tokens of the sequence of log pi - log mu) (Zheng et al. 2025, arXiv 2507.18071, eq. 7).
    Every token carries sg(s) pi / sg(pi), where sg stops the gradient (GSPO-token, eq. 14): in the mean over a
    sequence it has the value and the gradient of s, and no gradient flows through the mean.

    The masks are the tokens of sequences that are clipped: `clipped_high` and `clipped_low`.
    """
    advantages, response_mask = tokens.advantages, tokens.response_mask
    low, high = clip_range(config)
    log_ratio = tokens.log_ratio()
    sequence_log_ratio = tokens.sequence_mean(jax.lax.stop_gradient(log_ratio))
    ratio = jnp.exp(sequence_log_ratio + log_ratio - jax.lax.stop_gradient(log_ratio))
    clipped = jnp.clip(ratio, low, high)
    loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
    return loss, {
        "clipped_high": response_mask & (advantages > 0) & (ratio > high),
        "clipped_low": response_mask & (advantages < 0) & (ratio < low),
    }
