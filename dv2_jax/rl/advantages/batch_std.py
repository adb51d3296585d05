"""Group-centered advantages normalized over the batch."""

from __future__ import annotations

import numpy as np

from dv2_jax.rl.advantage_registry import STD_EPSILON, advantage, centered


@advantage("batch")
def batch_std(rewards, groups):
    """Compute (R - mean of the group) / (std + 1e-6) with the unbiased standard deviation of all rewards of the step.

    Source: LitePPO (arXiv 2508.08221) and TRL's `scale_rewards="batch"`; REINFORCE++-baseline divides by the standard
    deviation over the tokens of the centered rewards instead.
    """
    advantages = np.zeros_like(rewards)
    scale = np.nanstd(rewards, ddof=1) + STD_EPSILON if groups else 1.0
    for members in groups:
        advantages[members] = centered(rewards[members]) / scale
    return advantages
