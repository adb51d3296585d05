"""Checkpoints of the training state: a thin wrapper around Orbax's CheckpointManager, local or `gs://`.

A checkpoint is a directory named by its step. Orbax writes it under a temporary name and renames it on completion (on
object stores: a commit marker), so an interrupted save is never listed, and is deleted at the next start.
"""

from __future__ import annotations

import base64
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from dv2_jax.checkpoint import damage
from dv2_jax.checkpoint.damage import CheckpointDamaged, CheckpointMismatch, SaveFailed
from dv2_jax.parallel import distributed

DAMAGED = ".damaged"  # suffix of a checkpoint folder that was set aside
_BYTES = "$bytes"  # key that marks base64-encoded bytes in the JSON of extra


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Orbax warnings about intended use: overriding a type handler, options of a read-only manager."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


logging.getLogger("absl").addFilter(damage.is_news)

# With use_replica_parallel each replica writes a slice of a replicated array, which compiles a program per shape.
with _without_warnings():
    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
    )


@dataclass(frozen=True)
class RestoredState:
    """A checkpoint read from disk."""

    step: int  # step of the recipe at which it was saved
    params: dict[str, jax.Array]
    opt_state: PyTree
    extra: dict[str, Any]


class CheckpointStore:
    """Saves and restores (params, optimizer state, extra), and keeps the newest `keep` checkpoints.

    On several hosts the methods are collective: every process creates the store and calls them in the same order.

    Args:
        asynchronous: `save` returns once the arrays are copied to host memory and writes in the background; `wait` and
            `close` block until the write is complete.
        read_only: for readers of a run that may still be training. A reader must not delete incomplete saves, because
            it cannot distinguish an interrupted save from one in progress.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, asynchronous: bool = False, read_only: bool = False):
        path = str(directory)
        self._saving = 0  # step of the last save
        self.directory = path if "://" in path else str(Path(path).absolute())
        with _without_warnings() if read_only else nullcontext():
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={  # declared so that metadata can be read before the first save
                    "params": ocp.StandardCheckpointHandler(),
                    "opt_state": ocp.StandardCheckpointHandler(),
                    "extra": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                    enable_async_checkpointing=asynchronous,
                    read_only=read_only,
                ),
            )

    def save(self, step: int, params: Mapping[str, jax.Array], opt_state: PyTree, extra: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`. `extra` holds JSON values and, at any depth, bytes (a data iterator's state).

        Raises:
            ValueError: a checkpoint of `step` exists already.
            SaveFailed: the files cannot be written, e.g. because the disk is full; older checkpoints are intact.
        """
        if step in self._manager.all_steps():
            raise ValueError(f"{self.directory} already has a checkpoint of step {step}")
        items = {"params": ocp.args.StandardSave(dict(params)), "extra": ocp.args.JsonSave(_to_json(dict(extra)))}
        if jax.tree.leaves(opt_state):  # Orbax rejects a tree without arrays, which stateless optimizers have
            items["opt_state"] = ocp.args.StandardSave(opt_state)
        self._saving = step
        with self._failed_save_as_one_line(step):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints in ascending order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, params: Mapping[str, Any], opt_state: PyTree, step: int | None = None) -> RestoredState:
        """Restore the checkpoint of `step` (default: the newest) bit-identically with the shardings of the targets.

        The targets are trees of ShapeDtypeStruct or arrays; their shardings may be of another mesh than the saved ones.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            CheckpointDamaged: the checkpoint cannot be read.
            CheckpointMismatch: the name, shape or dtype of parameters differs; the message lists them.
        """
        step = self._resolve_step(step)
        items = {"params": ocp.args.StandardRestore(_targets(dict(params))), "extra": ocp.args.JsonRestore()}
        if jax.tree.leaves(opt_state):
            items["opt_state"] = ocp.args.StandardRestore(_targets(opt_state))
        with self._damage_as_one_line(step, items):
            self._check_params(step, params, same_dtype=True)
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        return RestoredState(step, found["params"], found.get("opt_state", opt_state), _from_json(found["extra"]))

    def restore_newest_readable(
        self, params: Mapping[str, Any], opt_state: PyTree, log: Callable[[str], None]
    ) -> RestoredState:
        """Like `restore`, from the newest checkpoint that can be read.

        Newer, damaged ones are renamed to `<step>.damaged`, so that their steps can be saved again, and reported to
        `log`. Nothing is renamed if no checkpoint can be read.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointDamaged: no checkpoint can be read; the message says which folder to remove.
            CheckpointMismatch: the name, shape or dtype of parameters differs; the message lists them.
        """
        self._resolve_step(None)
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, problem = None, ""
            try:
                restored = self.restore(params, opt_state, step)
            except CheckpointDamaged as error:
                problem = str(error)
            if not distributed.any_process(bool(problem)):
                self._set_aside(damaged, log)
                return restored
            damaged[step] = problem or f"checkpoint {step} cannot be read by another process"
        raise CheckpointDamaged(
            f"{'; '.join(damaged.values())}. There is no other checkpoint: restore the folder from a copy, or remove"
            f" {self.directory} to start over"
        )

    def restore_params(self, params: Mapping[str, Any], step: int | None = None) -> dict[str, jax.Array]:
        """Restore only the weights, cast to the dtypes of the targets (for inference).

        Raises: as `restore`. A damaged newest checkpoint is not replaced by an older one, whose weights are others.
        """
        step = self._resolve_step(step)
        items = {"params": ocp.args.StandardRestore(_targets(dict(params)))}
        with self._damage_as_one_line(step, items):
            self._check_params(step, params, same_dtype=False)
            return self._manager.restore(step, args=ocp.args.Composite(**items))["params"]

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """Return the saved `extra` without reading the arrays."""
        step, items = self._resolve_step(step), {"extra": ocp.args.JsonRestore()}
        with self._damage_as_one_line(step, items):
            return _from_json(self._manager.restore(step, args=ocp.args.Composite(**items))["extra"])

    def wait(self) -> None:
        """Block until a pending asynchronous save is complete; raises SaveFailed if it failed."""
        with self._failed_save_as_one_line(self._saving):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Complete a pending save and close the manager; raises SaveFailed if the save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _damage_as_one_line(self, step: int, items: Mapping[str, Any]) -> Iterator[None]:
        """Convert an exception about unreadable data into CheckpointDamaged."""
        checkpoint = f"{self.directory}/{step}"
        with damage.captured_logs() as lines:
            try:
                yield
            except Exception as error:
                if damage.is_mismatch(error):
                    raise CheckpointMismatch(
                        f"the optimizer state of {checkpoint} has other entries than this run's: set model.freeze and"
                        " optim back to what the run was started with"
                    ) from error
                if not damage.is_damage(error):
                    raise
                reason = damage.explain_damage(checkpoint, list(items), error)
                hint = damage.write_log(self.directory, f"reading {checkpoint}", error, lines)
                older = [existing for existing in self.steps() if existing < step]
                other = f"; the one before it is {self.directory}/{older[-1]}" if older else ""
                raise CheckpointDamaged(f"checkpoint {checkpoint} cannot be read: {reason}{other}{hint}") from None

    @contextmanager
    def _failed_save_as_one_line(self, step: int) -> Iterator[None]:
        """Convert an exception about files that cannot be written into SaveFailed, and delete the incomplete files."""
        with damage.captured_logs() as lines:
            try:
                yield
            except Exception as error:
                if not damage.is_damage(error):
                    raise
                if "://" not in self.directory:
                    for incomplete in Path(self.directory).glob(f"{step}.orbax-checkpoint-tmp*"):
                        shutil.rmtree(incomplete, ignore_errors=True)
                reason = damage.explain_failed_save(error)
                hint = damage.write_log(self.directory, f"saving step {step} to {self.directory}", error, lines)
                intact = [existing for existing in self.steps() if existing < step]
                rest = (
                    f"the checkpoint of step {intact[-1]} is intact, and the same command continues from it"
                    if intact
                    else "there is no earlier checkpoint"
                )
                raise SaveFailed(
                    f"the checkpoint of step {step} cannot be saved in {self.directory}: {reason}; {rest}{hint}"
                ) from None

    def _set_aside(self, damaged: Mapping[int, str], log: Callable[[str], None]) -> None:
        """Rename damaged checkpoints, oldest first, and report each. Collective."""
        for step, problem in sorted(damaged.items()):
            source = Path(self.directory) / str(step)
            target = Path(f"{source}{DAMAGED}")
            if distributed.is_main():
                if target.exists():
                    shutil.rmtree(target)
                source.rename(target)
            log(f"WARNING: {problem}; renamed to {target.name}, continuing from an older checkpoint")
        if damaged:
            distributed.barrier("damaged checkpoints set aside")
            self._manager.reload()

    def _resolve_step(self, step: int | None) -> int:
        existing = self.steps()
        if not existing or (step is not None and step not in existing):
            missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{missing} in {self.directory} (existing: {existing or 'none'})")
        return existing[-1] if step is None else step

    def _check_params(self, step: int, params: Mapping[str, Any], *, same_dtype: bool) -> None:
        """Raise one CheckpointMismatch for all differences between the targets and the saved parameters."""
        saved = self._manager.item_metadata(step)["params"].tree
        problems = [f"{name} is not in the checkpoint" for name in sorted(params.keys() - saved.keys())]
        problems += [f"{name} is only in the checkpoint" for name in sorted(saved.keys() - params.keys())]
        for name in sorted(params.keys() & saved.keys()):
            target, stored = params[name], saved[name]
            if tuple(target.shape) != tuple(stored.shape):
                problems.append(f"{name} has shape {tuple(target.shape)}, saved {tuple(stored.shape)}")
            elif same_dtype and target.dtype != stored.dtype:
                problems.append(f"{name} is {target.dtype}, saved {stored.dtype}")
        if problems:
            more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise CheckpointMismatch(
                f"step {step} of {self.directory} does not fit this model: {'; '.join(problems[:10])}{more}"
            )


def _targets(tree: PyTree) -> PyTree:
    """Return abstract arrays with a sharding each; leaves without one go to the first device."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default)

    return jax.tree.map(target, tree)


def _to_json(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            base64.b64decode(value[_BYTES])
            if value.keys() == {_BYTES}
            else {k: _from_json(v) for k, v in value.items()}
        )
    return [_from_json(item) for item in value] if isinstance(value, list) else value
