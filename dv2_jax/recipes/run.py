"""Setup shared by the recipes: run directory, checkpoints and telemetry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import Config
from dv2_jax.config.resume import CONFIG_FILE, INPUTS_FILE
from dv2_jax.files import atomic_write
from dv2_jax.parallel import distributed
from dv2_jax.policy import Policy
from dv2_jax.recipes.resumption import check_resume
from dv2_jax.rollout.question_sources import ReadRows, read_rows
from dv2_jax.telemetry.interrupt import Interrupt
from dv2_jax.telemetry.metrics_writer import MetricsWriter
from dv2_jax.telemetry.progress import Display, ProgressTask
from dv2_jax.telemetry.spans import Spans
from dv2_jax.trainer.optimizer import OptimizerBundle
from dv2_jax.trainer.state import TrainState, abstract_state, commit, init_state, step_counter


class Interrupted(Exception):
    """Raised when SIGINT or SIGTERM asked the run to stop."""


@contextmanager
def stop_together() -> Iterator[None]:
    """Agree over all hosts on an interrupt: if the block raised Interrupted on one host, all raise it at its end."""
    with distributed.raise_together(Interrupted):
        yield


@dataclass
class Run:
    """An open run directory with its checkpoint store, metrics and signal handler."""

    config: Config
    directory: Path
    store: CheckpointStore
    display: Display
    metrics: MetricsWriter
    spans: Spans
    interrupt: Interrupt
    start: int  # step of the checkpoint from which the run continues; 0 for a new run
    finished: dict[str, Any] | None = None  # the summary of a run that has nothing left to do
    read_rows: ReadRows = read_rows  # reads the files of `config.task`; the recipes set one that checks them

    def stop_requested(self) -> bool:
        """Return True on every host once a signal has reached any host. Collective."""
        return distributed.any_process(self.interrupt.requested)

    def progress_callback(self, part: ProgressTask) -> Callable[..., None]:
        """Wrap `part.advance` for long work inside `stop_together`: it raises Interrupted once a signal has arrived."""

        def advance(count: int = 1) -> None:
            part.advance(count)
            if self.interrupt.requested:
                raise Interrupted

        return advance

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Save a checkpoint of `step` unless it exists already."""
        if step not in self.store.steps():
            with self.spans.span("checkpoint", step=step):
                self.store.save(step, state.params, state.opt_state, extra | {"optimizer_steps": int(state.step)})


@contextmanager
def open_run(
    config: Config,
    complete: Callable[[Config], Config] = lambda config: config,
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[Run]:
    """Open the run directory `root/name`: writes `config.json` and opens metrics, spans and the checkpoint store.

    `complete` fills in derived values of a stored configuration, as the recipe did for `config`. `prepare` is called
    before anything is written, unless the run is finished; what it raises leaves the directory unchanged.

    Raises:
        ConfigError: the directory holds a run with another configuration or other data, which is left unchanged, or
            checkpoints while `run.resume` is off.
    """
    directory = Path(config.run.root) / config.run.name
    resumption = check_resume(directory, config, complete)
    if resumption.finished is None:
        prepare()
    with ExitStack() as stack:
        store = stack.enter_context(CheckpointStore(directory / "checkpoints"))
        start = store.latest_step() or 0
        main = distributed.is_main()
        if main:
            write_json(directory / CONFIG_FILE, config.to_dict())
            write_json(directory / INPUTS_FILE, resumption.files)
        display = Display(enabled=main)
        for line in resumption.notes:
            display.line(line)
        yield Run(
            config, directory, store, display,
            stack.enter_context(
                MetricsWriter(directory, first_step=start + 1, tensorboard=config.run.tensorboard, enabled=main,
                        wandb_project=config.run.wandb_project, run_name=config.run.name, config=config.to_dict())
            ),
            stack.enter_context(Spans(directory / "timeline.json" if main else None, process=jax.process_index())),
            stack.enter_context(Interrupt()),
            start,
            resumption.finished,
        )  # fmt: skip


def init_or_restore(run: Run, policy: Policy, optimizer_bundle: OptimizerBundle) -> tuple[TrainState, dict[str, Any]]:
    """Restore the newest checkpoint (state, extra), or initialize the state from `config.model` with an empty extra."""
    config = run.config
    if not run.start:
        if distributed.is_main():
            policy.spec.save(run.directory)
        params = policy.load_weights(config.run.seed)
        return init_state(params, optimizer_bundle.optimizer, optimizer_bundle.trainable), {}
    abstract = abstract_state(policy.params, optimizer_bundle.optimizer, optimizer_bundle.trainable)
    restored = run.store.restore_newest_readable(abstract.params, abstract.opt_state, run.display.line)
    if restored.step != run.start:
        run.start = restored.step
        run.metrics.rewind(run.start + 1)
    run.display.line(f"resuming {run.directory} after step {restored.step}")
    extra = restored.extra
    steps = extra["optimizer_steps"] if "optimizer_steps" in extra else extra["optimiser_steps"]  # key before 0.2
    step = step_counter(steps, restored.params)
    return TrainState(commit(restored.params), commit(restored.opt_state), step), restored.extra


def write_json(path: Path, document: dict) -> None:
    """Write a JSON file atomically and durably."""
    atomic_write(path, json.dumps(document, indent=2) + "\n", durable=True)
