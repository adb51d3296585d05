"""Per-trajectory statistics, exchanged between hosts for advantages and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dv2_jax.agent.tool_use import tool_kinds
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.parallel import distributed
from dv2_jax.rl.batch import loss_tokens


@dataclass(frozen=True)
class TrajectoryStats:
    """Statistics of one scored trajectory: small enough to exchange between hosts.

    Advantages and all reported metrics are computed from them; token ids and images stay on the host that sampled.
    """

    skill: str
    dropped: bool  # lost to an infrastructure failure; masked from the loss
    reward: float  # 0 for a dropped trajectory
    correct: bool
    well_formed: bool
    finish: str
    tool_calls: int
    used: dict[str, bool]  # per category of tools: at least one call was executed
    tool_kinds: dict[str, int]  # calls per class of use, see `agent.tool_use`
    tokens: int
    loss_tokens: int  # see `rl.batch.loss_tokens`
    row_failed: bool = False  # the row of the question cannot be used

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory) -> TrajectoryStats:
        """Collects the statistics of a trajectory whose reward has been computed."""
        kept = not trajectory.dropped
        parts = trajectory.reward_parts
        return cls(
            skill=trajectory.question.skill,
            dropped=trajectory.dropped,
            reward=0.0 if trajectory.reward is None else float(trajectory.reward),
            correct=kept and parts["accuracy"] > 0.5,
            well_formed=kept and parts["format"] > 0,
            finish="running" if trajectory.finish is None else trajectory.finish.name.lower(),
            tool_calls=trajectory.tool_calls,
            used=trajectory.used_categories(),
            tool_kinds=dict(tool_kinds(trajectory.turns, trajectory.tools)),
            tokens=len(trajectory.token_ids),
            loss_tokens=loss_tokens(trajectory),
            row_failed=bool(trajectory.row_error),
        )


def gather_trajectory_stats(groups: Sequence[Sequence[Trajectory]]) -> list[list[TrajectoryStats]]:
    """All-gathers the statistics of every host's groups of trajectories.

    Every host calls it. The groups come back in the order that `distributed.shard_for_process` divided.
    """
    found = distributed.allgather_shards(
        [[asdict(TrajectoryStats.from_trajectory(t)) for t in group] for group in groups]
    )
    return [[TrajectoryStats(**fields) for fields in group] for group in found]
