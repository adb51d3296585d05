"""What is logged of an RL step: sums over tokens on the device, means and rollout statistics on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

if TYPE_CHECKING:
    from dv2_jax.agent.trajectory import Trajectory


def mismatch(
    logprobs: Float[Array, "B T"], behaviour_logprobs: Float[Array, "B T"], used: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Sums of the gap between trainer (pi) and sampler (mu) over the used tokens, and its largest value.

    k1 = log mu - log pi and k3 = pi/mu - 1 - log(pi/mu) both estimate KL(mu || pi) from mu's samples; k3 is never negative.
    """
    gap = jnp.where(used, logprobs - behaviour_logprobs, 0.0)
    return {
        "gap_k1": -jnp.sum(gap),
        "gap_k3": jnp.sum(jnp.expm1(gap) - gap),
        "gap_abs": jnp.sum(jnp.abs(gap)),
        "ratio": jnp.sum(jnp.where(used, jnp.exp(gap), 0.0)),
        "gap_max": jnp.max(jnp.abs(gap)),
    }


def token_sums(
    used: Bool[Array, "B T"],
    advantages: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    at_clip: Mapping[str, Bool[Array, "B T"]],
) -> dict[str, Float[Array, ""]]:
    """Additive token statistics of a microbatch; `token_means` turns a step's sums into fractions."""

    def count(x):
        return jnp.sum(x).astype(jnp.float32)

    sums = {name: count(x) for name, x in at_clip.items()}
    sums["nonzero_advantage"] = count(used & (advantages != 0))
    sums["entropy"] = jnp.sum(jnp.where(used, entropy, 0.0))
    sums["loss_tokens"] = count(used)
    return sums


MEANS = ("gap_k1", "gap_k3", "gap_abs", "ratio", "clipped_high", "clipped_low", "dual_clipped", "nonzero_advantage", "entropy")


def token_means(combined: Mapping[str, float]) -> dict[str, float]:
    """Divide the token sums of a step by its number of loss tokens; everything else passes through."""
    tokens = max(combined["loss_tokens"], 1.0)
    return {name: value / tokens if name in MEANS else value for name, value in combined.items()}


def rollout_statistics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the trajectories of a step that count; `dropped` is the share that does not."""
    kept = [t for t in trajectories if not t.dropped]
    statistics = {"dropped": 1.0 - len(kept) / max(len(trajectories), 1)}
    if not kept:
        return statistics
    statistics |= {
        "reward": float(np.mean([t.reward for t in kept])),
        "tool_calls": float(np.mean([t.tool_calls for t in kept])),
        "tool_rate": float(np.mean([t.tool_calls > 0 for t in kept])),
        "turns": float(np.mean([len(t.turns) for t in kept])),
        "tokens": float(np.mean([len(t.token_ids) for t in kept])),
        "sampled_tokens": float(np.mean([sum(t.loss_mask) for t in kept])),
    }
    for part in sorted({name for t in kept for name in t.reward_parts}):
        statistics[f"reward_{part}"] = float(np.mean([t.reward_parts.get(part, 0.0) for t in kept]))
    for name, members in _by_skill(kept).items():
        statistics[f"reward/{name}"] = float(np.mean([t.reward for t in members]))
        statistics[f"tool_rate/{name}"] = float(np.mean([t.tool_calls > 0 for t in members]))
    for finish, count in sorted(Counter(t.finish.name.lower() for t in kept).items()):
        statistics[f"finish/{finish}"] = count / len(kept)
    return statistics


def _by_skill(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    skills: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        skills.setdefault(trajectory.question.skill, []).append(trajectory)
    return dict(sorted(skills.items()))
