"""REINFORCE: the policy gradient without importance ratio."""

from __future__ import annotations

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens, policy_loss


@policy_loss("reinforce", zero_at_zero_advantage=True)
def reinforce(tokens: LossTokens, config: RLConfig):
    """Compute l = -A log pi (Williams 1992).

    It is exact only while the policy is the sampler: with `rl.minibatches` > 1, later minibatches are uncorrected.
    """
    return -tokens.advantages * tokens.logprobs, {}
