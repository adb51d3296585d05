"""The policy-gradient train step on packed trajectories, and a log-prob function without gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from dv2_jax.config import RLConfig
from dv2_jax.data.packing import PackedBatch
from dv2_jax.model.params import GraphDef, Params
from dv2_jax.parallel.mesh import BATCH_AXES
from dv2_jax.rl.objective import make_objective
from dv2_jax.rl.policy_metrics import rollout_mismatch_metrics, token_metric_sums
from dv2_jax.trainer.forward import token_logprobs
from dv2_jax.trainer.train_step import LossFn, TrainStep


def rl_loss(
    graphdef: GraphDef, config: RLConfig, *, temperature: float, forbidden: Bool[Array | np.ndarray, " V"] | None
) -> LossFn:
    """Build the loss of the configured algorithm, with the sampler's log-probs as the old log-probs of the ratio.

    The engine samples with the trainer's model and weights, so its log-probs are those of the policy at the start of
    the step and no second forward pass is needed. The remaining numerical mismatch is measured by
    `rollout_mismatch_metrics` in the same forward pass.
    """
    objective = make_objective(config)

    def loss(params: Params, batch: PackedBatch):
        logprobs, entropy = token_logprobs(graphdef, params, batch, temperature=temperature, forbidden=forbidden)
        value, token_metrics = objective(
            logprobs,
            batch.behavior_logprobs,
            batch.advantages,
            batch.loss_weight,
            batch.segment_ids,
            batch.denominator,
            batch.reference_logprobs,
        )
        response_mask = batch.loss_weight > 0
        metrics = rollout_mismatch_metrics(logprobs, batch.behavior_logprobs, response_mask)
        metrics |= token_metric_sums(response_mask, batch.advantages, entropy, token_metrics)
        return value, metrics

    return loss


def make_rl_step(
    graphdef: GraphDef,
    config: RLConfig,
    optimizer: optax.GradientTransformation,
    trainable: tuple[str, ...],
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " V"] | None = None,
    schedule: optax.Schedule | None = None,
    param_shardings=None,
) -> TrainStep:
    """Build the RL train step. Its token metrics are sums, see `rl.policy_metrics.token_metric_means`."""
    loss = rl_loss(graphdef, config, temperature=temperature, forbidden=forbidden)
    return TrainStep(loss, optimizer, trainable, schedule=schedule, param_shardings=param_shardings)


def make_logprob_fn(
    graphdef: GraphDef,
    *,
    temperature: float = 1.0,
    forbidden: Bool[Array | np.ndarray, " V"] | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Params, PackedBatch], Float[Array, "B T"]]:
    """Build the jitted `logprob_fn(params, batch)`: the sampler's log-probs of `batch.targets`, without gradient.

    Call it under `use_mesh(mesh)`: attention and the sharding constraints are chosen by the current mesh while tracing.
    The output has the sharding of the batch's other columns, so that the train step accepts it without recompilation.
    """
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.jit(
        lambda params, batch: token_logprobs(graphdef, params, batch, temperature=temperature, forbidden=forbidden)[0],
        out_shardings=sharding,
    )
