"""Group-relative (GRPO) advantages, computed on the host in float64."""

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
    """Compute the group-relative advantage of every trajectory: its reward minus the mean reward of its group.

    With `normalize_std` it is divided by the group's unbiased standard deviation plus `STD_EPSILON` (DeepEyesV2 spec
    6.2). Trajectories that are not `valid` (lost to infrastructure errors) get advantage 0 and are excluded from the
    group statistics. A group with fewer than two valid members has no baseline, so its advantages are 0.

    Raises:
        ValueError: a valid reward is not finite.
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
        # Equal rewards must give exactly 0; the rounding error of the mean divided by epsilon would not.
        if np.ptp(rewards[members]) == 0.0:
            continue
        advantages[members] = centered / (rewards[members].std(ddof=1) + STD_EPSILON) if normalize_std else centered
    return advantages


def groups_with_reward_variance(
    rewards: Float[np.ndarray, " N"], group_ids: Int[np.ndarray, " N"], valid: Bool[np.ndarray, " N"] | None = None
) -> set[int]:
    """Return the ids of groups with nonzero reward variance: only these have a gradient; dynamic sampling keeps them."""
    rewards = np.asarray(rewards, np.float64)
    valid = np.ones(len(rewards), bool) if valid is None else np.asarray(valid, bool)
    return {int(group_ids[m[0]]) for m in _groups(group_ids, valid) if np.ptp(rewards[m]) > 0.0}


def _groups(group_ids, valid) -> list[np.ndarray]:
    """Return the indices of the valid members of each group."""
    group_ids = np.asarray(group_ids)
    return [np.flatnonzero((group_ids == g) & valid) for g in np.unique(group_ids[valid])]
