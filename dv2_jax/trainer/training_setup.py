"""The gradient program of a run, assembled from its policy and configuration: for training, and ahead of time."""

from __future__ import annotations

from dataclasses import dataclass

from dv2_jax.config import Config
from dv2_jax.data.packing import PackSpec
from dv2_jax.policy import Policy
from dv2_jax.trainer.optimizer import OptimizerBundle, make_optimizer_bundle
from dv2_jax.trainer.rl_step import make_rl_step
from dv2_jax.trainer.sft_step import make_sft_step
from dv2_jax.trainer.train_step import TrainStep


@dataclass(frozen=True)
class TrainingSetup:
    """The train step of a run, with its optimizer and the shape of its microbatches."""

    optimizer_bundle: OptimizerBundle
    train_step: TrainStep
    pack_spec: PackSpec


def sft_setup(policy: Policy, config: Config) -> TrainingSetup:
    """Returns the setup of supervised fine-tuning."""
    sft = config.sft
    bundle = make_optimizer_bundle(config, policy.logical_axes, sft.steps)
    train_step = make_sft_step(
        policy.graphdef,
        bundle.optimizer,
        bundle.trainable,
        schedule=bundle.schedule,
        param_shardings=policy.shardings,
    )
    rows = sft.batch_rows // sft.microbatches
    return TrainingSetup(
        bundle, train_step, policy.pack_spec(config, rows, sft.row_tokens, key="sft.batch_rows / sft.microbatches")
    )


def rl_setup(policy: Policy, config: Config) -> TrainingSetup:
    """Returns the setup of reinforcement learning."""
    rl = config.rl
    bundle = make_optimizer_bundle(config, policy.logical_axes, rl.steps * rl.minibatches)
    train_step = make_rl_step(
        policy.graphdef,
        rl,
        bundle.optimizer,
        bundle.trainable,
        temperature=config.sampling.temperature,
        forbidden=policy.forbidden,
        schedule=bundle.schedule,
        param_shardings=policy.shardings,
    )
    return TrainingSetup(
        bundle, train_step, policy.pack_spec(config, rl.microbatch_rows, rl.row_tokens, key="rl.microbatch_rows")
    )
