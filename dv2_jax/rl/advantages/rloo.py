"""Leave-one-out advantages (RLOO)."""

from __future__ import annotations

import numpy as np

from dv2_jax.rl.advantage_registry import advantage, centered


@advantage("rloo")
def rloo(rewards, groups):
    """Compute R - mean of the other n - 1 members, which equals n / (n - 1) (R - mean of all) (arXiv 2402.14740)."""
    advantages = np.zeros_like(rewards)
    for members in groups:
        advantages[members] = centered(rewards[members]) * len(members) / (len(members) - 1)
    return advantages
