"""Group-relative advantages without division by the standard deviation (Dr. GRPO)."""

from __future__ import annotations

import numpy as np

from dv2_jax.rl.advantage_registry import advantage, centered


@advantage("dr_grpo")
def dr_grpo(rewards, groups):
    """Compute R - mean of the group, so that easy and hard questions are not weighted up (arXiv 2503.20783)."""
    advantages = np.zeros_like(rewards)
    for members in groups:
        advantages[members] = centered(rewards[members])
    return advantages
