"""AdamW as the recipes use it: which parameters learn, which decay, and the learning rate over time."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
import optax

from dv2_jax.config import OptimConfig

GROUPS = ("vision", "projector", "text")


def parameter_group(name: str) -> str:
    """The freezing group of a flat parameter name: its first part."""
    group = name.split(".", 1)[0]
    if group not in GROUPS:
        raise ValueError(f"parameter {name!r} belongs to none of the groups {GROUPS}")
    return group


def trainable_names(names: Iterable[str], freeze: Iterable[str]) -> tuple[str, ...]:
    """Names that learn, in order; `freeze` lists groups.

    Raises ValueError on an unknown group or when nothing is left.
    """
    freeze = tuple(freeze)
    unknown = sorted(set(freeze) - set(GROUPS))
    if unknown:
        raise ValueError(f"freeze={freeze}: unknown group {unknown[0]!r}; choose from {GROUPS}")
    kept = tuple(sorted(n for n in names if parameter_group(n) not in freeze))
    if not kept:
        raise ValueError(f"freeze={freeze} leaves no parameter to train")
    return kept


def decays(name: str) -> bool:
    """Whether weight decay applies: not to norm scales and biases, whose stacked arrays look like matrices."""
    return name.rsplit(".", 1)[-1] not in ("bias", "scale")


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_ratio` of the steps, then constant or a cosine down to 0 at `total_steps`."""
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
    """Global-norm clipping, then AdamW. Its state holds fp32 moments under the parameters' own names."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity(),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: decays(name) for name in params},
        ),
    )
