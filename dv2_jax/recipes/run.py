"""What every recipe does around its loop: the run directory, the policy, checkpoints and the numbers people see."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from dv2_jax.checkpoint.policy_spec import Architecture, architecture, load_weights
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import Config
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model.params import GraphDef, abstract_params, build, logical_axes
from dv2_jax.parallel import distributed
from dv2_jax.parallel.mesh import device_mesh, param_shardings
from dv2_jax.telemetry.interrupt import Interrupt
from dv2_jax.telemetry.metrics_writer import Metrics
from dv2_jax.telemetry.progress import Display, Part
from dv2_jax.telemetry.spans import Spans
from dv2_jax.trainer.optimizer import learning_rate, make_optimizer, trainable_names
from dv2_jax.trainer.state import TrainState, bound, init_state, opt_shardings, split_params, step_counter


@dataclass(frozen=True)
class Policy:
    """Everything about the trained model that does not change."""

    architecture: Architecture
    graphdef: GraphDef
    tokenizer: Tokenizer
    mesh: Mesh | None  # None: one device
    shardings: dict[str, NamedSharding] | None

    @property
    def config(self):
        return self.architecture.config

    @property
    def data_shards(self) -> int:
        """Devices that the rows of a batch are split over."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]


def load_policy(config: Config) -> Policy:
    """Architecture, tokenizer and mesh of `config.model`; no weights yet."""
    arch = architecture(config.model)
    if arch.tokenizer_file is None:
        raise ValueError(f"model.init = {config.model.init!r} has no tokenizer: train from hf:/path or a package model")
    graphdef, _ = build(arch.config, compute_dtype=config.model.compute_dtype, remat=config.model.remat)
    mesh = device_mesh(config.mesh)
    shardings = None if mesh is None else param_shardings(mesh, logical_axes(arch.config))
    return Policy(arch, graphdef, Tokenizer.from_file(arch.tokenizer_file), mesh, shardings)


@dataclass(frozen=True)
class Learning:
    """The optimizer of a run."""

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable: tuple[str, ...]


def make_learning(config: Config, policy: Policy, total_steps: int) -> Learning:
    return Learning(
        make_optimizer(config.optim, total_steps),
        learning_rate(config.optim, total_steps),
        trainable_names(logical_axes(policy.config), config.model.freeze),
    )


class Stopped(Exception):
    """A signal asked the run to stop."""


@contextmanager
def together() -> Iterator[None]:
    """Around work between steps that a signal may end on one host: after it, all hosts go on, or all raise Stopped."""
    stopped = False
    try:
        yield
    except Stopped:
        stopped = True
    if distributed.any_process(stopped):
        raise Stopped


@dataclass
class Run:
    """An open run directory."""

    config: Config
    directory: Path
    store: CheckpointStore
    display: Display
    metrics: Metrics
    spans: Spans
    interrupt: Interrupt
    start: int  # steps that an earlier run of this directory has done

    def stop_requested(self) -> bool:
        return distributed.any_process(self.interrupt.requested)

    def advancing(self, part: Part) -> Callable[..., None]:
        """`part.advance` for long work between steps, within `together`: raises Stopped once a signal came."""

        def advance(count: int = 1) -> None:
            part.advance(count)
            if self.interrupt.requested:
                raise Stopped

        return advance

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Checkpoint `step` of the recipe, unless that is on disk already."""
        if step not in self.store.steps():
            with self.spans.span("checkpoint", step=step):
                self.store.save(step, state.params, state.opt_state, extra | {"optimizer_steps": int(state.step)})


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Open `root/name`: writes `config.json` and keeps metrics, spans and checkpoints until the block ends.

    Raises FileExistsError when the directory holds checkpoints and `run.resume` is off.
    """
    directory = Path(config.run.root) / config.run.name
    with ExitStack() as stack:
        store = stack.enter_context(CheckpointStore(directory / "checkpoints"))
        start = store.latest_step() or 0
        if start and not config.run.resume:
            raise FileExistsError(
                f"{directory} holds checkpoints up to step {start} and run.resume is off:"
                " choose another run.name, or remove the directory"
            )
        main = distributed.is_main()
        if main:
            write_json(directory / "config.json", config.to_dict())
        yield Run(
            config, directory, store, Display(enabled=main),
            stack.enter_context(
                Metrics(directory, first_step=start + 1, tensorboard=config.run.tensorboard, enabled=main,
                        wandb_project=config.run.wandb_project, run_name=config.run.name, config=config.to_dict())
            ),
            stack.enter_context(Spans(directory / "timeline.json" if main else None, process=jax.process_index())),
            stack.enter_context(Interrupt()),
            start,
        )  # fmt: skip


def begin(run: Run, policy: Policy, learning: Learning) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint's state and extra, or a fresh state from `config.model` and an empty extra."""
    config = run.config
    if not run.start:
        if distributed.is_main():
            policy.architecture.save(run.directory)
        params = load_weights(config.model, policy.config, mesh=policy.mesh, seed=config.run.seed)
        return init_state(params, learning.optimizer, learning.trainable), {}
    abstract = abstract_state(policy, learning)
    restored = run.store.restore(abstract.params, abstract.opt_state)
    run.display.line(f"continuing {run.directory} after step {restored.step}")
    extra = restored.extra
    steps = extra["optimizer_steps"] if "optimizer_steps" in extra else extra["optimiser_steps"]  # key before 0.2
    step = step_counter(steps, restored.params)
    return TrainState(bound(restored.params), bound(restored.opt_state), step), restored.extra


def abstract_state(policy: Policy, learning: Learning) -> TrainState:
    """Shapes, types and shardings of a run's state, without arrays."""
    params = abstract_params(policy.config)
    if policy.shardings is not None:
        params = {n: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=policy.shardings[n]) for n, p in params.items()}
    learn, _ = split_params(params, learning.trainable)
    opt_state = jax.eval_shape(learning.optimizer.init, learn)
    if policy.shardings is not None:
        places = opt_shardings(opt_state, policy.shardings)
        opt_state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), opt_state, places)
    return TrainState(params, opt_state, jax.ShapeDtypeStruct((), "int32"))


def write_json(path: Path, document: dict) -> None:
    """Write `path` so that a reader finds the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
