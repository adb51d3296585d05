"""The reference policy of the KL term: the initial policy of the run, which scores every microbatch."""

from __future__ import annotations

from dataclasses import replace

from dv2_jax.config import Config
from dv2_jax.data.packing import PackedBatch
from dv2_jax.parallel.mesh import use_mesh
from dv2_jax.policy import Policy
from dv2_jax.trainer.rl_step import make_logprob_fn


class ReferencePolicy:
    """The weights of `config.model` and the function that computes their log-probs."""

    def __init__(self, config: Config, policy: Policy):
        self._mesh = policy.mesh
        self._logprob_fn = make_logprob_fn(
            policy.graphdef, temperature=config.sampling.temperature, forbidden=policy.forbidden, mesh=policy.mesh
        )
        self._params = policy.load_weights(config.run.seed)

    def with_logprobs(self, batch: PackedBatch) -> PackedBatch:
        """Return the batch with the reference log-probs of its targets."""
        with use_mesh(self._mesh):
            return replace(batch, reference_logprobs=self._logprob_fn(self._params, batch))
