"""Group-relative advantages (GRPO)."""

from __future__ import annotations

import numpy as np

from dv2_jax.rl.advantage_registry import STD_EPSILON, advantage, centered


@advantage("grpo")
def grpo(rewards, groups):
    """Compute (R - mean) / (std + 1e-6) with mean and unbiased standard deviation of the group (DeepEyesV2 spec 6.2)."""
    advantages = np.zeros_like(rewards)
    for members in groups:
        group = rewards[members]
        advantages[members] = centered(group) / (group.std(ddof=1) + STD_EPSILON)
    return advantages
