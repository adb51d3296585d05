"""Inputs of the stored reference values, generated from seeds; shared by the test and the script that stores them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

REFERENCE_FILE = Path(__file__).with_name("reference_values.npz")
# Standard deviation of log pi - log mu per token: far off the policy, and so close that sequence ratios are near 1.
NOISE = {"far": 0.6, "near": 2e-3}
ROWS, TOKENS = 7, 24


def loss_inputs(noise: str) -> SimpleNamespace:
    """Return log-probs, advantages per row and a response mask with tool gaps, rows of 1 and of no loss token."""
    rng = np.random.default_rng(11)
    old = -rng.exponential(1.0, (ROWS, TOKENS))
    logprobs = old + NOISE[noise] * rng.normal(size=(ROWS, TOKENS))
    mask = (np.arange(TOKENS) < np.array([24, 7, 13, 24, 1, 18, 20])[:, None]).astype(np.float64)
    mask[0, 5:9] = mask[3, 10:20] = 0.0  # observations
    mask[6] = 0.0  # a masked trajectory
    if noise == "far":
        logprobs[3, 2] = old[3, 2] + 2.5  # ratio 12 at a negative advantage: the dual clip
        logprobs[0, 1] = old[0, 1] + 2.0  # ratio 7.4 at a positive advantage: above the bound of CISPO
    return SimpleNamespace(
        logprobs=logprobs,
        old_logprobs=old,
        reference_logprobs=old + 0.3 * rng.normal(size=(ROWS, TOKENS)),
        mask=mask,
        advantages=np.array([1.2, -0.7, 0.3, -1.5, 0.9, -0.2, 0.8]),
    )


def reward_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return rewards and group numbers of 6 groups of 4, ordered by group; the last group has equal rewards."""
    rewards = np.random.default_rng(12).choice([0.0, 0.2, 0.72, 0.8, 0.92, 1.0], 24)
    rewards[20:] = 0.5
    return rewards, np.repeat(np.arange(6), 4)
