"""Tests of the clipped policy loss and the KL term against float64 formulas and torch's autograd."""

import functools

import jax
import numpy as np
import pytest
import torch

from dv2_jax.config import RLConfig
from dv2_jax.rl.aggregation import AGGREGATIONS
from dv2_jax.rl.objective import make_objective

B, T = 6, 24


@functools.partial(jax.jit, static_argnames="config")
def evaluated(new, old, advantages, weight, denominator, reference=None, *, config):
    """Compute loss, clip masks and the gradient with respect to the new log-probs in one program."""

    segments = np.ones(np.shape(new), np.int32)

    def loss(x):
        return make_objective(config)(x, old, advantages, weight, segments, denominator, reference)

    (value, flags), gradient = jax.value_and_grad(loss, has_aux=True)(new)
    return value, flags, gradient


@pytest.fixture(scope="module")
def sample():
    """Return an off-policy batch with masked tool responses; some ratios exceed every clip bound."""
    rng = np.random.default_rng(0)
    old = -rng.exponential(1.0, (B, T))
    new = old + rng.normal(0.0, 0.5, (B, T))
    new[0, 3] = old[0, 3] + 30.0  # beyond the clamp of the log-ratio
    new[1, 4] = old[1, 4] - 30.0
    new[2, 5] = old[2, 5] + 2.0  # ratio 7.4 > dual clip, with the negative advantage of row 2
    mask = (rng.random((B, T)) < 0.7).astype(np.float64)
    mask[[0, 1, 2], [3, 4, 5]] = 1.0
    advantages = np.repeat(np.array([1.2, 0.7, -0.9, -1.1, 0.0, 0.4])[:, None], T, 1)
    return new, old, advantages, mask


def torch_token_losses(new, old, advantages, config):
    """Compute the per-token loss of verl's compute_policy_loss_vanilla and TRL's `dapo`."""
    ratio = torch.exp(torch.clamp(new - old, -20.0, 20.0))
    loss = torch.maximum(
        -advantages * ratio, -advantages * torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
    )
    if config.dual_clip:
        loss = torch.where(advantages < 0, torch.minimum(loss, -config.dual_clip * advantages), loss)
    return loss


def weights(mask, aggregation):
    weight, denominator = AGGREGATIONS.get(aggregation)(mask.sum(1), RLConfig())
    return mask * weight[:, None], denominator


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("clips", [(0.2, 0.3, 3.0), (0.2, 0.2, 3.0), (0.2, 0.28, 0.0)])
def test_loss_and_gradient_equal_the_published_formulas(sample, aggregation, clips):
    """Catches: swapped clip bounds, a dual clip of the wrong sign, a missing clamp, a mean over the wrong axis."""
    new, old, advantages, mask = sample
    config = RLConfig(clip_low=clips[0], clip_high=clips[1], dual_clip=clips[2])
    t_new = torch.tensor(new, requires_grad=True)
    per_token = torch_token_losses(t_new, torch.tensor(old), torch.tensor(advantages), config)
    t_mask = torch.tensor(mask)
    if aggregation == "token_mean":
        expected = (per_token * t_mask).sum() / t_mask.sum()
    else:
        expected = ((per_token * t_mask).sum(1) / t_mask.sum(1)).mean()
    expected.backward()

    weight, denominator = weights(mask, aggregation)

    value, _, gradient = evaluated(new, old, advantages, weight, denominator, config=config)
    assert abs(float(value) - expected.item()) < 1e-6 * max(1.0, abs(expected.item()))
    np.testing.assert_allclose(gradient, t_new.grad, rtol=2e-6, atol=1e-7)


def test_kl_to_a_reference_is_the_k3_estimate(sample):
    """Catches: k3 with the wrong sign or swapped arguments (the gradient then pushes away from the reference)."""
    new, old, _, mask = sample
    new = np.clip(new, old - 1, old + 1)
    reference = old - 0.3
    config = RLConfig(kl_coefficient=0.05)
    d = reference - new
    expected = 0.05 * ((np.exp(d) - d - 1) * mask).sum() / mask.sum()
    value, _, _ = evaluated(new, old, np.zeros_like(new), mask, mask.sum(), reference, config=config)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_losses_of_microbatches_add_up_to_the_loss_of_the_batch(sample, aggregation):
    """Catches: a mean of means, the defect by which the released token mean became a sequence mean."""
    new, old, advantages, mask = sample
    weight, denominator = weights(mask, aggregation)
    config = RLConfig()

    def loss(rows):
        return float(evaluated(*(x[rows] for x in (new, old, advantages, weight)), denominator, config=config)[0])

    parts = [loss(slice(k, k + 2)) for k in (0, 2, 4)]
    assert sum(parts) == pytest.approx(loss(slice(None)), abs=1e-6)


def test_a_fully_masked_row_changes_nothing_and_padding_may_hold_anything(sample):
    """Catches: NaN in padding reaching the loss or the gradient through 0 * nan."""
    new, old, advantages, mask = sample
    config = RLConfig()
    padded = [np.concatenate([x, np.full((1, T), np.nan)]) for x in (new, old)]
    a = np.concatenate([advantages, np.ones((1, T))])
    m = np.concatenate([mask, np.zeros((1, T))])

    value, _, gradient = evaluated(new, old, advantages, mask, mask.sum(), config=config)
    void_value, _, void_gradient = evaluated(*padded, a, m, mask.sum(), config=config)
    assert float(value) == pytest.approx(float(void_value), abs=1e-6)
    np.testing.assert_array_equal(void_gradient[:B], gradient)
    np.testing.assert_array_equal(void_gradient[B], 0.0)


def test_clip_flags_mark_the_tokens_whose_gradient_is_cut(sample):
    """Catches: clip fractions counted for the wrong sign of the advantage, or on masked tokens."""
    new, old, advantages, mask = sample
    config = RLConfig()

    _, flags, gradient = evaluated(new, old, advantages, mask, 1.0, config=config)
    cut = flags["clipped_high"] | flags["clipped_low"] | flags["dual_clipped"]
    inside = (mask > 0) & (advantages != 0) & (np.abs(new - old) < 20)
    np.testing.assert_array_equal((np.asarray(gradient) == 0) & inside, np.asarray(cut) & inside)
    assert bool(flags["dual_clipped"][2, 5])
