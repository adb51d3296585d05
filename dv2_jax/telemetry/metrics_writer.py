"""Writes metrics per step to `metrics.jsonl` and, optionally, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import numbers
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dv2_jax.files import atomic_write

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes one JSON line per call of `write`, on process 0 only; the others pass `enabled=False`.

    `first_step` is the next step of a resumed run: rows of an earlier run at or after it are removed first, because
    those steps are repeated. Each line is flushed, so that a killed run keeps it.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        first_step: int = 0,
        tensorboard: bool = False,
        wandb_project: str = "",
        run_name: str = "",
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        self._file = self._board = self._wandb = None
        if not enabled:
            return
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._open_files(first_step, tensorboard=tensorboard)
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, run_name or self._directory.name, config, self._directory)

    def rewind(self, first_step: int) -> None:
        """Removes the rows at and after `first_step`, for a run that repeats steps after the writer was opened."""
        if self._file is None:
            return
        tensorboard = self._board is not None
        self._file.close()
        if tensorboard:
            self._board.close()
        self._open_files(first_step, tensorboard=tensorboard)

    def _open_files(self, first_step: int, *, tensorboard: bool) -> None:
        _drop_rows_from(self._directory / FILE, first_step)
        self._file = open(self._directory / FILE, "a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._directory / "tensorboard"), purge_step=first_step or None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row of numbers, strings or scalar arrays (fetching a device array blocks until it is computed).

        A number that is not finite is written as null, which JSON requires, and its name is added to `not_finite`.

        Raises:
            TypeError: if a value is not a scalar.
        """
        if self._file is None:
            return
        row = {name: _plain(name, value) for name, value in values.items()}
        broken = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        line = {"step": step, "time": round(time.time(), 3)} | row | {name: None for name in broken}
        if broken:
            line["not_finite"] = broken
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        scalars = {name: value for name, value in row.items() if not isinstance(value, str)}
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def close(self) -> None:
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._board = self._wandb = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of a run, oldest first; skips the incomplete line of a killed run."""
    path = Path(directory) / FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _plain(name: str, value: Any) -> float | int | str:
    if hasattr(value, "item"):
        try:
            value = value.item()
        except ValueError as error:  # more than one element
            raise TypeError(f"metric {name!r} has shape {value.shape}, not a scalar") from error
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"metric {name!r} is a {type(value).__name__}, not a number or a string")


def _drop_rows_from(path: Path, first_step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row.get("step", -1) < first_step]
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _start_wandb(project: str, name: str, config: Mapping[str, Any] | None, directory: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise RuntimeError(f"run.wandb_project = {project!r} needs the package: pip install 'dv2_jax[wandb]'") from None
    return wandb.init(
        project=project, name=name, id=name, resume="allow", config=dict(config or {}), dir=str(directory)
    )
