"""The reference policy of the KL term: the initial policy of the run, which scores every microbatch."""

from __future__ import annotations

from dataclasses import replace

from dv2_jax.checkpoint.policy_spec import load_weights
from dv2_jax.config import Config
from dv2_jax.data.packing import PackedBatch
from dv2_jax.recipes.run import Policy
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.trainer.rl_step import make_logprob_fn


class ReferencePolicy:
    """The weights of `config.model` and the function that computes their log-probs."""

    def __init__(self, config: Config, policy: Policy, session: RolloutSession):
        self._logprob_fn = make_logprob_fn(
            policy.graphdef, temperature=config.sampling.temperature, forbidden=session.forbidden
        )
        self._params = load_weights(config.model, policy.config, mesh=policy.mesh, seed=config.run.seed)

    def with_logprobs(self, batch: PackedBatch) -> PackedBatch:
        """Return the batch with the reference log-probs of its targets."""
        return replace(batch, reference_logprobs=self._logprob_fn(self._params, batch))
