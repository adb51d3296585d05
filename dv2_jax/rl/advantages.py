"""Group-relative advantages, on the host in float64."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

STD_EPSILON = 1e-6  # as released: (R - mean) / (unbiased std + 1e-6)


def group_advantages(
    rewards: Float[np.ndarray, " N"],
    group_ids: Int[np.ndarray, " N"],
    *,
    valid: Bool[np.ndarray, " N"] | None = None,
    normalize_std: bool = True,
) -> Float[np.ndarray, " N"]:
    """Reward minus its group's mean, over the group's unbiased deviation where `normalize_std` (DeepEyesV2 spec 6.2).

    Trajectories that are not `valid` (lost to the infrastructure) get 0 and count in no mean. A group with fewer than
    two valid members says nothing about what is better, so it gets 0 as well. Raises ValueError on a valid reward
    that is not finite.
    """
    rewards = np.asarray(rewards, np.float64)
    valid = np.ones(len(rewards), bool) if valid is None else np.asarray(valid, bool)
    if not np.all(np.isfinite(rewards[valid])):
        raise ValueError(
            f"reward {rewards[valid & ~np.isfinite(rewards)][0]} of a trajectory in the loss is not finite"
        )
    advantages = np.zeros(len(rewards), np.float64)
    for members in _groups(group_ids, valid):
        if len(members) < 2:
            continue
        centered = rewards[members] - rewards[members].mean()
        # Equal rewards must give exactly 0: the rounding of a mean, divided by epsilon, would not.
        if np.ptp(rewards[members]) == 0.0:
            continue
        advantages[members] = centered / (rewards[members].std(ddof=1) + STD_EPSILON) if normalize_std else centered
    return advantages


def informative_groups(
    rewards: Float[np.ndarray, " N"], group_ids: Int[np.ndarray, " N"], valid: Bool[np.ndarray, " N"] | None = None
) -> set[int]:
    """Groups whose valid rewards differ: the only ones with a gradient, and what dynamic sampling keeps."""
    rewards = np.asarray(rewards, np.float64)
    valid = np.ones(len(rewards), bool) if valid is None else np.asarray(valid, bool)
    return {int(group_ids[m[0]]) for m in _groups(group_ids, valid) if np.ptp(rewards[m]) > 0.0}


def _groups(group_ids, valid) -> list[np.ndarray]:
    group_ids = np.asarray(group_ids)
    return [np.flatnonzero((group_ids == g) & valid) for g in np.unique(group_ids[valid])]
