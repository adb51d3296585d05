"""Conversion of scored trajectories into the minibatches of an RL step: loss weights and denominators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dv2_jax.agent.trajectory import Finish, Trajectory
from dv2_jax.config import RLConfig
from dv2_jax.data.packing import Example
from dv2_jax.rl.aggregation import AGGREGATIONS
from dv2_jax.rl.algorithms import resolve_algorithm
from dv2_jax.rl.loss_registry import needs_zero_advantages

TRUNCATED = (Finish.MAX_TOKENS, Finish.TURN_LIMIT)  # ended at a token limit, of the trajectory or of a turn


@dataclass(frozen=True)
class Minibatch:
    """The examples of one optimizer step and the denominator of their loss."""

    examples: tuple[Example, ...]
    denominator: float


def loss_tokens(trajectory: Trajectory) -> int:
    """Count the tokens of a trajectory that enter the loss; 0 if it was lost to an infrastructure error."""
    return 0 if trajectory.dropped else trajectory.sampled_tokens


def mask_truncated(tokens: Int[np.ndarray, " N"], finishes: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Return the numbers of loss tokens with 0 for trajectories that a token limit ended (overlong filtering).

    They stay in the baseline of their group and in means over sequences (TRL's `mask_truncated_completions`).
    `finishes` holds the names of `agent.trajectory.Finish` in lower case.
    """
    return np.where(np.isin(finishes, [finish.name.lower() for finish in TRUNCATED]), 0, tokens)


def make_minibatches(
    trajectories: Sequence[Trajectory | None],
    advantages: Sequence[float],
    config: RLConfig,
    tokens: Int[np.ndarray, " N"] | None = None,
) -> list[Minibatch]:
    """Split the trajectories of one step, in order, into `config.minibatches` minibatches with equally many groups.

    Trajectories are ordered by group. Token weights and denominators come from the aggregation, see `rl.aggregation`.

    A trajectory with advantage 0 has no gradient in most losses. It is then left out of the computation, but counts in
    the denominator, which leaves the loss of the minibatch unchanged (see `rl.loss_registry.needs_zero_advantages`).

    On several hosts `trajectories` is None at the indices of other hosts: those count in the denominator and are
    computed by their host. `tokens` is the number of loss tokens of every trajectory (default: `loss_tokens` of each);
    a trajectory with 0 is not in the loss.

    Raises:
        ValueError: the lists differ in length, or the trajectories do not divide evenly into minibatches.
    """
    config = resolve_algorithm(config)
    aggregate, keep_zeros = AGGREGATIONS.get(config.aggregation), needs_zero_advantages(config)
    tokens = np.array([loss_tokens(t) for t in trajectories if t is not None]) if tokens is None else tokens
    if not len(trajectories) == len(advantages) == len(tokens):
        raise ValueError(
            f"{len(trajectories)} trajectories but {len(advantages)} advantages and {len(tokens)} numbers of loss tokens"
        )
    if len(trajectories) % config.minibatches:
        raise ValueError(
            f"{len(trajectories)} trajectories do not split into rl.minibatches={config.minibatches} equal parts"
        )
    size = len(trajectories) // config.minibatches
    parts = []
    for start in range(0, len(trajectories), size):
        part = range(start, start + size)
        weights, denominator = aggregate(tokens[start : start + size], config)
        examples = [
            to_example(trajectory, float(advantages[i]), float(weight))
            for i, weight in zip(part, weights, strict=True)
            if (trajectory := trajectories[i]) is not None and tokens[i] and (advantages[i] != 0.0 or keep_zeros)
        ]
        parts.append(Minibatch(tuple(examples), denominator))
    return parts


def to_example(trajectory: Trajectory, advantage: float, weight: float) -> Example:
    """Convert a trajectory into an `Example` with per-token loss weight `weight` on its sampled tokens.

    Raises:
        ValueError: its lists differ in length, its first token is marked as sampled, or a sampled token has no valid
            log-probability.
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
    return Example(trajectory.token_ids, mask * weight, tuple(trajectory.images), logprobs, advantage)
