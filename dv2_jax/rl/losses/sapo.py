"""Soft adaptive policy optimization: a sigmoid gate instead of a clip."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens, policy_loss


@policy_loss("sapo", zero_at_zero_advantage=True)
def sapo(tokens: LossTokens, config: RLConfig, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05):
    """Compute l = -A (4 / t) sigmoid(t (r - 1)), with the temperature t by the sign of A.

    The derivative of the gate is 1 at r = 1 and vanishes smoothly away from it; the higher temperature of negative
    advantages damps them more (arXiv 2511.20347, eq. 5; defaults of TRL and verl).
    """
    temperature = jnp.where(tokens.advantages > 0, temperature_pos, temperature_neg)
    gate = jax.nn.sigmoid(temperature * (jnp.exp(tokens.log_ratio()) - 1.0)) * 4.0 / temperature
    return -gate * tokens.advantages, {}
