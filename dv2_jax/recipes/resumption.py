"""The decision whether a command may continue the run in its run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dv2_jax.config import Config, ConfigError
from dv2_jax.config.resume import (
    CONFIG_FILE,
    IMAGES,
    INPUTS_FILE,
    Difference,
    differences,
    file_digests,
    is_allowed,
    read_stored,
)
from dv2_jax.parallel import distributed

STATE = ("evaluations/*.json", "data/questions_done")  # files that a resumed run reads, in addition to checkpoints


@dataclass(frozen=True)
class Resumption:
    """The result of a check: digests of the data files, lines for the user, and the summary of a finished run."""

    files: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    finished: dict[str, Any] | None = None


def check_resume(directory: Path, config: Config, complete: Callable[[Config], Config]) -> Resumption:
    """Compare `config` with the run in `directory` before anything is written there. Collective; process 0 reads.

    `complete` fills in derived values of the stored configuration.

    Raises:
        ConfigError: the directory holds a run with another configuration or other data, more steps than `config`, or
            checkpoints while `run.resume` is off; the message lists every differing field and the ways out.
    """
    outcome: dict[str, Any] = {}
    if distributed.is_main():
        try:
            outcome = {"resumption": asdict(_check(directory, config, complete))}
        except ConfigError as error:
            outcome = {"error": str(error)}
    outcome = distributed.broadcast_from_main(outcome)
    if "error" in outcome:
        raise ConfigError(outcome["error"])
    return Resumption(**outcome["resumption"])


def _check(directory: Path, config: Config, complete: Callable[[Config], Config]) -> Resumption:
    steps = _saved_steps(directory)
    has_state = steps or any(True for pattern in STATE for _ in directory.glob(pattern))
    stored_files = read_stored(directory / INPUTS_FILE) if (directory / INPUTS_FILE).exists() else {}
    files = file_digests(config, stored_files)
    if not has_state:
        return Resumption({key: entry | {IMAGES: None} for key, entry in files.items()})
    done = max(steps, default=0)
    if done and not config.run.resume:
        raise ConfigError(
            f"{directory} holds checkpoints up to step {done} and run.resume is off:"
            " choose another run.name, or remove the directory"
        )
    if not (directory / CONFIG_FILE).exists():
        return Resumption(files, [f"WARNING: {directory} has no {CONFIG_FILE}: it may be of another configuration"])
    found = differences(
        read_stored(directory / CONFIG_FILE),
        config,
        complete=complete,
        stored_files=stored_files,
        given_files=files,
    )
    _refuse(directory, config, done, [item for item in found if not is_allowed(item, config.recipe)])
    notes = [f"changed since the run was started: {item}" for item in found if item.key == f"{config.recipe}.steps"]
    return Resumption(files, notes, _finished_summary(directory, config, done, found))


def _saved_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints that hold parameters; an empty folder is not one."""
    return [int(path.parent.name) for path in directory.glob("checkpoints/*/params") if path.parent.name.isdigit()]


def _refuse(directory: Path, config: Config, done: int, refused: list[Difference]) -> None:
    """Raise ConfigError if there is a difference that would mix two experiments, or fewer steps than done."""
    ways_out = (
        "choose another run with --config.run.name=NAME, or start over in a new folder with"
        " --config.run.root=FOLDER --config.run.resume=false"
    )
    if refused:
        lines = "".join(f"\n  {item}" for item in refused)
        raise ConfigError(
            f"{directory} holds a run with another configuration ({done} steps done):{lines}\n"
            f"set {'this' if len(refused) == 1 else 'these'} back, {ways_out}"
        )
    steps = getattr(config, config.recipe).steps
    if steps < done:
        raise ConfigError(
            f"{config.recipe}.steps = {steps}, but {directory} has done {done} steps:"
            f" use at least {config.recipe}.steps={done}, {ways_out}"
        )


def _finished_summary(directory: Path, config: Config, done: int, found: list[Difference]) -> dict[str, Any] | None:
    """Return the stored summary if all steps are done and the evaluation is the same; else None."""
    path = directory / "summary.json"
    if done != getattr(config, config.recipe).steps or not path.is_file():
        return None
    if any(item.key.startswith("eval.") for item in found):
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("interrupted") is False and summary.get("steps") == done else None
