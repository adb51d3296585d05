"""The registry of advantage estimators, which run on the host in float64.

An estimator is `function(rewards, groups) -> advantages`. `rewards` has one entry per trajectory of a step, NaN where a
trajectory has no valid reward; `groups` lists the indices of the valid members of each group that has at least two.
Entries outside the groups are ignored: those trajectories get advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from dv2_jax.config.registry import Registry

STD_EPSILON = 1e-6  # as released and in verl; TRL adds 1e-4

Advantage = Callable[[Float[np.ndarray, " N"], Sequence[Int[np.ndarray, " M"]]], Float[np.ndarray, " N"]]
ADVANTAGES: Registry[Advantage] = Registry("advantage estimator", "rl.advantage", "dv2_jax.rl.advantages")


def advantage(name: str) -> Callable[[Advantage], Advantage]:
    """Register a function as the advantage estimator `name`."""
    return ADVANTAGES.register(name)


def compute_advantages(
    name: str,
    rewards: Float[np.ndarray, " N"],
    group_ids: Int[np.ndarray, " N"],
    valid: Bool[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " N"]:
    """Compute the advantage of every trajectory with the estimator of that name or import path.

    Trajectories that are not `valid` (lost to infrastructure errors) get advantage 0 and are excluded from the
    statistics. A group with fewer than two valid members has no baseline, so its advantages are 0.

    Raises:
        ConfigError: there is no such estimator.
        ValueError: a valid reward or a computed advantage is not finite.
    """
    estimator = ADVANTAGES.get(name)
    rewards, valid = _checked(rewards, valid)
    if not np.all(np.isfinite(rewards[valid])):
        raise ValueError(
            f"reward {rewards[valid & ~np.isfinite(rewards)][0]} of a trajectory in the loss is not finite"
        )
    groups = [members for members in _groups(group_ids, valid) if len(members) > 1]
    found = np.asarray(estimator(np.where(valid, rewards, np.nan), groups), np.float64)
    if found.shape != rewards.shape:
        raise ValueError(f"rl.advantage = {name} returned shape {found.shape} for {len(rewards)} trajectories")
    advantages = np.zeros(len(rewards), np.float64)
    for members in groups:
        advantages[members] = found[members]
    if not np.all(np.isfinite(advantages)):
        raise ValueError(f"rl.advantage = {name} returned the advantage {advantages[~np.isfinite(advantages)][0]}")
    return advantages


def centered(rewards: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Subtract the mean of a group; exactly 0 for equal rewards.

    The rounding error of the mean divided by a standard deviation of 0 plus epsilon would be a large advantage.
    """
    return np.zeros_like(rewards) if np.ptp(rewards) == 0.0 else rewards - rewards.mean()


def groups_with_reward_variance(
    rewards: Float[np.ndarray, " N"], group_ids: Int[np.ndarray, " N"], valid: Bool[np.ndarray, " N"] | None = None
) -> set[int]:
    """Return the ids of groups with nonzero reward variance: only these have a gradient; dynamic sampling keeps them."""
    rewards, valid = _checked(rewards, valid)
    return {int(group_ids[m[0]]) for m in _groups(group_ids, valid) if np.ptp(rewards[m]) > 0.0}


def _checked(rewards, valid) -> tuple[np.ndarray, np.ndarray]:
    rewards = np.asarray(rewards, np.float64)
    return rewards, np.ones(len(rewards), bool) if valid is None else np.asarray(valid, bool)


def _groups(group_ids, valid) -> list[np.ndarray]:
    """Return the indices of the valid members of each group."""
    group_ids = np.asarray(group_ids)
    return [np.flatnonzero((group_ids == g) & valid) for g in np.unique(group_ids[valid])]
