"""Named RL algorithms: each stands for a policy loss, an advantage estimator, an aggregation and clip values."""

from __future__ import annotations

import dataclasses
from typing import Any

from dv2_jax.config import RLConfig
from dv2_jax.rl.advantage_registry import ADVANTAGES
from dv2_jax.rl.aggregation import AGGREGATIONS
from dv2_jax.rl.loss_registry import get_policy_loss

_FIELDS = ("loss", "advantage", "aggregation", "clip_low", "clip_high", "dual_clip")
_ALGORITHMS = {
    # DAPO (arXiv 2503.14476) with the clip range of DeepEyesV2's paper (5.1) and the dual clip of verl.
    "dapo": ("ppo_clip", "grpo", "token_mean", 0.2, 0.3, 3.0),
    "grpo": ("ppo_clip", "grpo", "sequence_mean", 0.2, 0.2, 0.0),  # arXiv 2402.03300
    "dr_grpo": ("ppo_clip", "dr_grpo", "sequence_sum", 0.2, 0.2, 0.0),  # arXiv 2503.20783
    "gspo": ("gspo", "grpo", "sequence_mean", 3e-4, 4e-4, 0.0),  # arXiv 2507.18071
    # Ratios up to 5 (ScaleRL, TRL); no lower bound.
    "cispo": ("cispo", "grpo", "token_mean", 1.0, 4.0, 0.0),
    # As in verl: leave-one-out baseline in the clipped loss, whose gradient is that of REINFORCE while the policy is the
    # sampler. TRL clips the ratio of the sequence instead.
    "rloo": ("ppo_clip", "rloo", "token_mean", 0.2, 0.2, 3.0),
    # What the released training script runs (DeepEyesV2 spec 6.2).
    "deepeyesv2": ("ppo_clip", "grpo", "sequence_mean", 0.2, 0.2, 3.0),
}
ALIASES = {"released": "deepeyesv2"}


def resolve_algorithm(config: RLConfig) -> RLConfig:
    """Return `config` with the values of its algorithm in every field that is not set; set fields are kept.

    Raises:
        ConfigError: a loss, option, advantage or aggregation does not exist.
    """
    name = ALIASES.get(config.algorithm, config.algorithm)
    preset = dict(zip(_FIELDS, _ALGORITHMS[name], strict=True))
    unset: dict[str, Any] = {"algorithm": name}
    unset |= {field: value for field, value in preset.items() if getattr(config, field) is None}
    resolved = dataclasses.replace(config, **unset)
    get_policy_loss(resolved)
    ADVANTAGES.get(resolved.advantage)
    AGGREGATIONS.get(resolved.aggregation)
    return resolved


def describe_algorithm(config: RLConfig) -> str:
    """Return one line with the values that a resolved configuration trains with."""
    values = {field: getattr(config, field) for field in _FIELDS}
    values |= {"loss options": " ".join(config.loss_options) or None, "kl_coefficient": config.kl_coefficient}
    return f"algorithm {config.algorithm}: " + ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
