"""From scored trajectories to what an optimizer step trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import RLConfig
from dv2_jax.data.packing import Example


@dataclass(frozen=True)
class Minibatch:
    """The examples of one optimizer step; their losses are divided by `denominator`."""

    examples: tuple[Example, ...]
    denominator: float


def loss_tokens(trajectory: Trajectory) -> int:
    """Its sampled tokens; 0 where it does not count, because the infrastructure lost it."""
    return 0 if trajectory.dropped else trajectory.sampled_tokens


def make_minibatches(
    trajectories: Sequence[Trajectory | None],
    advantages: Sequence[float],
    config: RLConfig,
    tokens: Sequence[int] | None = None,
) -> list[Minibatch]:
    """Split the trajectories of one step, in order, into `config.minibatches` parts of equal numbers of groups.

    Trajectories come group after group. Weights and denominators follow `config.loss_aggregation`: 1 for each sampled
    token and their number in the part (`token_mean`), or 1 over the trajectory's sampled tokens and the number of
    trajectories (`sequence_mean`). A trajectory whose advantage is 0 has no gradient, so it is not computed, but it
    does count in the denominator; without a KL term that is exactly the loss of the whole part.

    A trajectory that another host has is None: it counts like the others, and that host computes it. `tokens` says how
    many of each one's tokens are in the loss (default: their `loss_tokens`).
    """
    tokens = [loss_tokens(t) for t in trajectories] if tokens is None else tokens
    if len(trajectories) != len(advantages):
        raise ValueError(f"{len(trajectories)} trajectories but {len(advantages)} advantages")
    if len(trajectories) % config.minibatches:
        raise ValueError(
            f"{len(trajectories)} trajectories do not split into rl.minibatches={config.minibatches} equal parts"
        )
    size = len(trajectories) // config.minibatches
    parts = []
    for start in range(0, len(trajectories), size):
        part = [i for i in range(start, start + size) if tokens[i]]
        by_token = config.loss_aggregation == "token_mean"
        examples = [
            to_example(trajectories[i], float(advantages[i]), 1.0 if by_token else 1.0 / tokens[i])
            for i in part
            if trajectories[i] is not None and (advantages[i] != 0.0 or config.kl_coefficient)
        ]
        parts.append(Minibatch(tuple(examples), float(sum(tokens[i] for i in part) if by_token else len(part))))
    return parts


def to_example(trajectory: Trajectory, advantage: float, weight: float) -> Example:
    """A trajectory for packing.

    Raises ValueError when its lists differ in length or a sampled token has no log-prob.
    """
    lengths = {name: len(getattr(trajectory, name)) for name in ("token_ids", "loss_mask", "logprobs", "versions")}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"trajectory {trajectory.id!r}: its lists differ in length: {lengths}")
    mask = np.asarray(trajectory.loss_mask, np.float32)
    logprobs = np.asarray(trajectory.logprobs, np.float32)
    sampled = mask > 0
    if sampled[0]:
        raise ValueError(f"trajectory {trajectory.id!r}: its first token is marked as sampled")
    if not np.all(np.isfinite(logprobs[sampled])) or np.any(logprobs[sampled] > 1e-3):  # rounding may exceed 0
        raise ValueError(
            f"trajectory {trajectory.id!r}: the behavior log-prob of a sampled token is no finite number <= 0"
        )
    return Example(trajectory.token_ids, mask * weight, tuple(trajectory.pictures), logprobs, advantage)
