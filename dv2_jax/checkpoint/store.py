"""Checkpoints of the training state: a thin wrapper around Orbax's CheckpointManager, local or `gs://`.

A checkpoint is a directory named by its step. Orbax writes it under a temporary name and renames it on completion (on
object stores: a commit marker), so an interrupted save is never listed, and is deleted at the next start.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

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
        """
        if step in self._manager.all_steps():
            raise ValueError(f"{self.directory} already has a checkpoint of step {step}")
        items = {"params": ocp.args.StandardSave(dict(params)), "extra": ocp.args.JsonSave(_to_json(dict(extra)))}
        if jax.tree.leaves(opt_state):  # Orbax rejects a tree without arrays, which stateless optimizers have
            items["opt_state"] = ocp.args.StandardSave(opt_state)
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
            ValueError: the name, shape or dtype of parameters differs; the message lists them.
        """
        step = self._resolve_step(step)
        self._check_params(step, params, same_dtype=True)
        items = {"params": ocp.args.StandardRestore(_targets(dict(params))), "extra": ocp.args.JsonRestore()}
        if jax.tree.leaves(opt_state):
            items["opt_state"] = ocp.args.StandardRestore(_targets(opt_state))
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        return RestoredState(step, found["params"], found.get("opt_state", opt_state), _from_json(found["extra"]))

    def restore_params(self, params: Mapping[str, Any], step: int | None = None) -> dict[str, jax.Array]:
        """Restore only the weights, cast to the dtypes of the targets (for inference)."""
        step = self._resolve_step(step)
        self._check_params(step, params, same_dtype=False)
        found = self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_targets(dict(params))))
        )
        return found["params"]

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """Return the saved `extra` without reading the arrays."""
        found = self._manager.restore(self._resolve_step(step), args=ocp.args.Composite(extra=ocp.args.JsonRestore()))
        return _from_json(found["extra"])

    def wait(self) -> None:
        """Block until a pending asynchronous save is complete; re-raises its error."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Complete a pending save and close the manager."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve_step(self, step: int | None) -> int:
        existing = self.steps()
        if not existing or (step is not None and step not in existing):
            missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{missing} in {self.directory} (existing: {existing or 'none'})")
        return existing[-1] if step is None else step

    def _check_params(self, step: int, params: Mapping[str, Any], *, same_dtype: bool) -> None:
        """Raise one ValueError for all differences between the targets and the saved parameters."""
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
            raise ValueError(
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
