"""Stores the answers of the server as trajectory records, as a run of an evaluation does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.telemetry.trajectories import TrajectoryWriter

STAGE = "serve"


@contextmanager
def saver(run_dir: Path, tokenizer: Tokenizer) -> Iterator[Callable[[Trajectory], None]]:
    """Yields a function that appends an answer to `trajectories/serve.jsonl`, with its images."""
    with TrajectoryWriter(run_dir / "trajectories", tokenizer) as writer:
        yield lambda trajectory: writer.write([trajectory], stage=STAGE)
