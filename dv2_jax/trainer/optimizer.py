"""AdamW for the recipes: trainable parameter groups, weight-decay mask and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import optax

from dv2_jax.config import Config, OptimConfig

GROUPS = ("vision", "projector", "text")


def parameter_group(name: str) -> str:
    """Return the group (vision, projector or text) of a flat parameter name: its first component.

    Raises:
        ValueError: the first component is none of `GROUPS`.
    """
    group = name.split(".", 1)[0]
    if group not in GROUPS:
        raise ValueError(f"parameter {name!r} belongs to none of the groups {GROUPS}")
    return group


def trainable_names(names: Iterable[str], freeze: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the trainable parameters: all but those of the groups in `freeze`.

    Raises:
        ValueError: a group is unknown, or all parameters are frozen.
    """
    freeze = tuple(freeze)
    unknown = sorted(set(freeze) - set(GROUPS))
    if unknown:
        raise ValueError(f"freeze={freeze}: unknown group {unknown[0]!r}; choose from {GROUPS}")
    kept = tuple(sorted(n for n in names if parameter_group(n) not in freeze))
    if not kept:
        raise ValueError(f"freeze={freeze} leaves no parameter to train")
    return kept


def has_weight_decay(name: str) -> bool:
    """Return True unless the parameter is a norm scale or a bias.

    It is decided by name: scales and biases are stacked over layers, so their rank does not tell them from kernels.
    """
    return name.rsplit(".", 1)[-1] not in ("bias", "scale")


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the learning-rate schedule: linear warm-up from 0 to `config.learning_rate`, then constant or cosine decay.

    Warm-up takes `warmup_ratio` of the steps; the cosine reaches 0 at `total_steps`.
    """
    warmup = round(config.warmup_ratio * total_steps)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum(1.0, (step + 1) / (warmup + 1)) if warmup else 1.0
        if config.schedule == "constant":
            return config.learning_rate * ramp
        done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        return config.learning_rate * ramp * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return schedule


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Build global-norm clipping followed by AdamW; the fp32 moments are keyed by parameter name."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity(),
        optax.adamw(
            learning_rate_schedule(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: has_weight_decay(name) for name in params},
        ),
    )


@dataclass(frozen=True)
class OptimizerBundle:
    """The optimizer of a run, its learning-rate schedule and the names of the trainable parameters."""

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable: tuple[str, ...]


def make_optimizer_bundle(config: Config, names: Iterable[str], total_steps: int) -> OptimizerBundle:
    """Build the optimizer of the parameters `names` for `total_steps` optimizer steps."""
    return OptimizerBundle(
        make_optimizer(config.optim, total_steps),
        learning_rate_schedule(config.optim, total_steps),
        trainable_names(names, config.model.freeze),
    )
