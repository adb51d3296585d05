"""Tests of the advantage estimators and of what `compute_advantages` guarantees for each of them."""

import numpy as np
import pytest
import torch

from dv2_jax.rl.advantage_registry import ADVANTAGES, compute_advantages, groups_with_reward_variance


def test_grpo_equals_the_published_group_normalization():
    """Catches: a biased standard deviation, a wrong epsilon, interleaved groups that are mixed up."""
    rng = np.random.default_rng(1)
    rewards = rng.choice([0.0, 0.2, 0.72, 0.8, 0.92, 1.0], 32)
    groups = np.arange(32) % 4
    got = compute_advantages("grpo", rewards, groups)
    for g in range(4):
        r = torch.tensor(rewards[groups == g])
        np.testing.assert_allclose(got[groups == g], (r - r.mean()) / (r.std() + 1e-6), rtol=1e-12)
    np.testing.assert_allclose(compute_advantages("grpo", [1.0, 0.0, 1.0, 0.0], [0] * 4)[0], 0.866024, atol=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES.names())
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(name):
    """Catches: a baseline that is not the group's, and a scale of the wrong sign."""
    rng = np.random.default_rng(2)
    rewards, groups = rng.random(24), np.repeat(np.arange(4), 6)
    got = compute_advantages(name, rewards, groups)
    np.testing.assert_allclose([got[groups == g].sum() for g in range(4)], 0.0, atol=1e-9)
    for g in range(4):
        np.testing.assert_array_equal(np.argsort(got[groups == g]), np.argsort(rewards[groups == g]))


@pytest.mark.parametrize("name", ADVANTAGES.names())
def test_lost_trajectories_and_constant_groups_get_no_advantage(name):
    """Catches: a lost trajectory entering its group's mean, rounding errors amplified by a tiny standard deviation."""
    rewards = np.array([1.0, 0.0, np.nan, 0.1, 0.1, 0.1, 0.7, np.nan])
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    valid = np.isfinite(rewards)
    scale = {"grpo": 0.5**0.5 + 1e-6, "dr_grpo": 1.0, "rloo": 0.5, "batch": np.std(rewards[valid], ddof=1) + 1e-6}[name]
    got = compute_advantages(name, rewards, groups, valid)
    np.testing.assert_allclose(got, [0.5 / scale, -0.5 / scale, 0, 0, 0, 0, 0, 0])
    assert groups_with_reward_variance(rewards, groups, valid) == {0}
    with pytest.raises(ValueError, match="not finite"):
        compute_advantages(name, rewards, groups)


@pytest.mark.parametrize("name", ADVANTAGES.names())
def test_a_step_that_lost_every_trajectory_has_no_advantage(name):
    """Catches: a standard deviation of no values, which is NaN and stops the run."""
    np.testing.assert_array_equal(compute_advantages(name, [np.nan] * 4, [0, 0, 1, 1], np.zeros(4, bool)), 0.0)
