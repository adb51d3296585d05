"""Training state on disk: a thin face over Orbax's CheckpointManager, local or ``gs://``.

A checkpoint is a directory named for its step. Orbax writes it under another name and renames it when all of it is
there (on object stores: a commit marker), so one whose save was killed is never listed, and is swept at the next start.
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

_BYTES = "$bytes"  # marks base64 text in the JSON of extra


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax warns of what is done here on purpose: a handler that takes another's place, options of a reader."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


# Replicas would each write a slice of an array that all of them hold, by programs compiled at every shape.
with _without_warnings():
    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
    )


@dataclass(frozen=True)
class Restored:
    step: int  # optimizer steps that were done when it was saved
    params: dict[str, jax.Array]
    opt_state: PyTree
    extra: dict[str, Any]


class CheckpointStore:
    """``save`` and ``restore`` of (params, optimizer state, extra), keeping the newest ``keep``.

    ``asynchronous``: ``save`` returns once the arrays are copied off the devices and writes behind the next step;
    ``wait`` or ``close`` ends it. On several hosts every process makes the store and calls its methods, in one order.
    ``read_only``: for those who look into a run that may still be going on; only its trainer may sweep a torn save,
    since to anyone else a save that is under way looks the same.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, asynchronous: bool = False, read_only: bool = False):
        path = str(directory)
        self.directory = path if "://" in path else str(Path(path).absolute())
        with _without_warnings() if read_only else nullcontext():
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={  # named here so that a process which has saved nothing can read the metadata
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
        """Writes ``step``. ``extra`` holds what JSON can, and bytes (a data iterator's state) at any depth.

        Raises ValueError when ``step`` is there already: two states for one step would be a bug in the recipe.
        """
        if step in self._manager.all_steps():
            raise ValueError(f"{self.directory} already has a checkpoint of step {step}")
        items = {"params": ocp.args.StandardSave(dict(params)), "extra": ocp.args.JsonSave(_to_json(dict(extra)))}
        if jax.tree.leaves(opt_state):  # Orbax refuses a tree without arrays, which some optimizers have
            items["opt_state"] = ocp.args.StandardSave(opt_state)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, params: Mapping[str, Any], opt_state: PyTree, step: int | None = None) -> Restored:
        """Reads ``step`` (default: the newest) onto abstract targets, bit for bit.

        The targets are trees of ShapeDtypeStruct or arrays; each leaf's sharding says where it goes, whatever the mesh
        was when it was saved. Raises FileNotFoundError when there is no such checkpoint, ValueError that lists the
        parameters whose name, shape or type differs from what was saved.
        """
        step = self._choose(step)
        self._check(step, params, same_dtype=True)
        items = {"params": ocp.args.StandardRestore(_targets(dict(params))), "extra": ocp.args.JsonRestore()}
        if jax.tree.leaves(opt_state):
            items["opt_state"] = ocp.args.StandardRestore(_targets(opt_state))
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        return Restored(step, found["params"], found.get("opt_state", opt_state), _from_json(found["extra"]))

    def restore_params(self, params: Mapping[str, Any], step: int | None = None) -> dict[str, jax.Array]:
        """The weights alone, for those who do not train on; cast to the targets' types."""
        step = self._choose(step)
        self._check(step, params, same_dtype=False)
        found = self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_targets(dict(params))))
        )
        return found["params"]

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the arrays, without reading them."""
        found = self._manager.restore(self._choose(step), args=ocp.args.Composite(extra=ocp.args.JsonRestore()))
        return _from_json(found["extra"])

    def wait(self) -> None:
        """Until what ``save`` began is complete on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choose(self, step: int | None) -> int:
        there = self.steps()
        if not there or (step is not None and step not in there):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.directory} (there: {there or 'none'})")
        return there[-1] if step is None else step

    def _check(self, step: int, params: Mapping[str, Any], *, same_dtype: bool) -> None:
        """Raises one ValueError for all differences between the targets and what was saved."""
        saved = self._manager.item_metadata(step)["params"].tree
        problems = [f"{name} is not in the checkpoint" for name in sorted(params.keys() - saved.keys())]
        problems += [f"{name} is only in the checkpoint" for name in sorted(saved.keys() - params.keys())]
        for name in sorted(params.keys() & saved.keys()):
            here, there = params[name], saved[name]
            if tuple(here.shape) != tuple(there.shape):
                problems.append(f"{name} has shape {tuple(here.shape)}, saved {tuple(there.shape)}")
            elif same_dtype and here.dtype != there.dtype:
                problems.append(f"{name} is {here.dtype}, saved {there.dtype}")
        if problems:
            more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise ValueError(
                f"step {step} of {self.directory} does not fit this model: {'; '.join(problems[:10])}{more}"
            )


def _targets(tree: PyTree) -> PyTree:
    """Abstract arrays with a place each; one that names none goes to the first device."""
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
