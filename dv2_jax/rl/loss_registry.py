"""The registry of policy losses: per-token losses, which `rl.objective` aggregates.

A policy loss is `function(tokens: LossTokens, config: RLConfig, **options)`; the keyword-only options come from
`rl.loss_options`. It returns the loss of every token and boolean masks by name, whose share of the loss tokens is logged
(such as the tokens at which a clip is active). Values at tokens outside `tokens.response_mask` are ignored.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dv2_jax.config import ConfigError, RLConfig
from dv2_jax.config.overrides import suggest
from dv2_jax.config.registry import Registry

MAX_LOG_RATIO = 20.0  # as released: keeps exp finite for any pair of policies


@dataclass(frozen=True)
class LossTokens:
    """The tokens of a microbatch: B packed rows of T positions, each of which predicts one target.

    `advantages` is constant over a sequence. `segment_ids` numbers the sequences of a row from 1; 0 is padding.
    """

    logprobs: Float[Array, "B T"]  # of the trained policy; arbitrary outside response_mask
    old_logprobs: Float[Array, "B T"]  # of the policy that sampled
    advantages: Float[Array, "B T"]
    response_mask: Bool[Array, "B T"]  # tokens in the loss
    segment_ids: Int[Array, "B T"]

    def log_ratio(self) -> Float[Array, "B T"]:
        """Return log pi - log mu, clamped to ±20 and 0 outside the response mask.

        The mask is applied before any exp, so that no 0 * nan of a padding position reaches the gradient.
        """
        gap = jnp.where(self.response_mask, self.logprobs - self.old_logprobs, 0.0)
        return jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO)

    def sequence_mean(self, values: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """Return, at every token, the mean of `values` over the loss tokens of its sequence (0 if there is none).

        A sequence is one segment of a packed row, so the mean depends on neither packing nor sharding.
        """
        num_segments = self.segment_ids.shape[1] + 1

        def row_means(values, mask, segment_ids):
            total = jax.ops.segment_sum(values, segment_ids, num_segments)
            count = jax.ops.segment_sum(mask, segment_ids, num_segments)
            return (total / jnp.maximum(count, 1.0))[segment_ids]

        masked = jnp.where(self.response_mask, values, 0.0)
        return jax.vmap(row_means)(masked, self.response_mask.astype(masked.dtype), self.segment_ids)


def clip_range(config: RLConfig) -> tuple[float, float]:
    """Return (1 - clip_low, 1 + clip_high) of a resolved configuration.

    Raises:
        ValueError: a clip value is not set; see `rl.algorithms.resolve_algorithm`.
    """
    if config.clip_low is None or config.clip_high is None:
        raise ValueError(
            f"rl.clip_low = {config.clip_low}, rl.clip_high = {config.clip_high}: resolve the algorithm first"
        )
    return 1.0 - config.clip_low, 1.0 + config.clip_high


PolicyLoss = Callable[..., tuple[Float[Array, "B T"], dict[str, Bool[Array, "B T"]]]]
POLICY_LOSSES: Registry[PolicyLoss] = Registry("policy loss", "rl.loss", "dv2_jax.rl.losses")


def policy_loss(name: str, *, zero_at_zero_advantage: bool = False) -> Callable[[PolicyLoss], PolicyLoss]:
    """Register a function as the policy loss `name`.

    `zero_at_zero_advantage` declares that loss and gradient are 0 where the advantage is 0, so that trajectories
    without advantage need not be computed.
    """

    def register(function: PolicyLoss) -> PolicyLoss:
        function.zero_at_zero_advantage = zero_at_zero_advantage  # type: ignore[attr-defined]
        return POLICY_LOSSES.register(name)(function)

    return register


def get_policy_loss(config: RLConfig) -> PolicyLoss:
    """Return the policy loss of a resolved configuration with its options bound: `function(tokens, config)`.

    Raises:
        ConfigError: the loss does not exist, or `rl.loss_options` does not fit it.
    """
    function = POLICY_LOSSES.get(config.loss)
    return functools.partial(function, **_options(function, config))


def needs_zero_advantages(config: RLConfig) -> bool:
    """Return True if trajectories with advantage 0 contribute to the loss of a resolved configuration."""
    loss = POLICY_LOSSES.get(config.loss)
    return bool(config.kl_coefficient) or not getattr(loss, "zero_at_zero_advantage", False)


def _options(function: PolicyLoss, config: RLConfig) -> dict[str, float]:
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    options: dict[str, float] = {}
    for entry in config.loss_options:
        name, _, text = entry.partition("=")
        if name not in known:
            raise ConfigError(
                f"rl.loss_options: {config.loss} has no option {name!r}{suggest(name, known)}"
                f" (known: {', '.join(known) or 'none'})"
            )
        if name in options:
            raise ConfigError(f"rl.loss_options: {name!r} is given twice")
        try:
            options[name] = float(text)
        except ValueError:
            raise ConfigError(f"rl.loss_options: {entry!r} is not NAME=NUMBER") from None
    return options
