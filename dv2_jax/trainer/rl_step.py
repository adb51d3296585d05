"""The policy-gradient step on packed trajectories, and log-probs without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Bool, Float

from dv2_jax.config import RLConfig
from dv2_jax.data.packing import PackedBatch
from dv2_jax.model.params import GraphDef
from dv2_jax.rl.losses import policy_loss
from dv2_jax.rl.policy_metrics import mismatch, token_sums
from dv2_jax.trainer.forward import token_logprobs
from dv2_jax.trainer.state import Params
from dv2_jax.trainer.train_step import LossFn, Update


def rl_loss(graphdef: GraphDef, config: RLConfig, *, temperature: float, forbidden: Bool[Array, " V"] | None) -> LossFn:
    """The clipped loss against the sampler's own log-probs.

    The sampler runs the trainer's model on the trainer's weights, so its log-probs are those of the policy at the start
    of the step; what is left between the two is measured on the way, from the same forward pass.
    """

    def loss(params: Params, batch: PackedBatch):
        logprobs, entropy = token_logprobs(graphdef, params, batch, temperature=temperature, forbidden=forbidden)
        value, at_clip = policy_loss(
            logprobs,
            batch.behavior_logprobs,
            batch.advantages,
            batch.loss_weight,
            config,
            batch.denominator,
            batch.reference_logprobs,
        )
        used = batch.loss_weight > 0
        metrics = mismatch(logprobs, batch.behavior_logprobs, used) | token_sums(
            used, batch.advantages, entropy, at_clip
        )
        return value, metrics

    return loss


def make_rl_step(
    graphdef: GraphDef,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
    trainable: tuple[str, ...],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array, " V"] | None = None,
    schedule: optax.Schedule | None = None,
    param_shardings=None,
) -> Update:
    """`state, metrics = step(state, microbatches)`; token metrics are sums, see `rl.metrics.token_means`."""
    loss = rl_loss(graphdef, config, temperature=temperature, forbidden=forbidden)
    return Update(loss, optimizer, trainable, schedule=schedule, param_shardings=param_shardings)


def make_scorer(
    graphdef: GraphDef, *, temperature: float = 1.0, forbidden: Bool[Array, " V"] | None = None
) -> Callable[[Params, PackedBatch], Float[Array, "B T"]]:
    """`logprobs = score(params, batch)` of the batch's targets, as the sampler defines them."""
    return jax.jit(
        lambda params, batch: token_logprobs(graphdef, params, batch, temperature=temperature, forbidden=forbidden)[0]
    )
