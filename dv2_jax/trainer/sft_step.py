"""Supervised fine-tuning on packed batches: the loss, the train step, and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dv2_jax.data.packing import PackedBatch, with_shared_denominator
from dv2_jax.trainer.forward import token_logprobs
from dv2_jax.trainer.state import TrainState
from dv2_jax.trainer.train_step import LossFn, TrainStep, shard_batch


def sft_loss(graphdef: Any) -> LossFn:
    """Build the weighted negative log-likelihood, divided by the step's denominator (a token mean for 0/1 weights)."""

    def loss(params, batch: PackedBatch):
        logprobs, entropy = token_logprobs(graphdef, params, batch)
        weight = batch.loss_weight / batch.denominator
        metrics = {
            "entropy": jnp.sum(entropy * weight),
            "tokens": jnp.sum(batch.segment_ids > 0).astype(jnp.float32),
            "trained_tokens": jnp.sum(batch.loss_weight > 0).astype(jnp.float32),
        }
        return -jnp.sum(logprobs * weight), metrics

    return loss


def make_sft_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    trainable: tuple[str, ...],
    *,
    schedule: optax.Schedule | None = None,
    param_shardings=None,
) -> TrainStep:
    """Build the SFT train step."""
    return TrainStep(sft_loss(graphdef), optimizer, trainable, schedule=schedule, param_shardings=param_shardings)


def sft_loop(
    state: TrainState,
    batches: Iterable[PackedBatch | Sequence[PackedBatch]],
    step: TrainStep,
    on_step: Callable[[int, dict[str, float], TrainState], Any] | None = None,
    *,
    mesh: Mesh | None = None,
) -> TrainState:
    """Take one optimizer step per element of `batches` (a microbatch or a sequence of them) until they are exhausted.

    `on_step(step, metrics, state)` is called after each step; the loop ends when it returns True. Prefetching is up to
    the source (`data.loader`), so that its checkpointed position is that of the step. The passed `state` is donated: use
    the returned one.
    """
    for item in batches:
        microbatches = [item] if isinstance(item, PackedBatch) else with_shared_denominator(item)
        state, metrics = step(state, [shard_batch(b, mesh) for b in microbatches])
        if on_step is not None and on_step(int(state.step), metrics, state):
            break
    return state
