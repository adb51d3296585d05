"""Supervised fine-tuning on packed conversations. One step:

    examples (shuffled, encoded and packed in the background) -> gradient of every microbatch -> AdamW -> metrics

`sft.data` selects the source of examples; the loss covers the assistant's tokens only. A killed run resumes
bit-identically: a checkpoint holds weights, optimizer moments and the state of the data iterator.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib.metadata import version
from typing import Any

import grain
import jax
import numpy as np

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import Config, ConfigError
from dv2_jax.data import loader
from dv2_jax.data.chat_encoder import ChatEncoder
from dv2_jax.data.packing import PackedBatch, PackSpec
from dv2_jax.parallel import distributed
from dv2_jax.policy import Policy, load_policy
from dv2_jax.recipes import sft_data
from dv2_jax.recipes.checked_data import CheckedData
from dv2_jax.recipes.run import (
    Interrupted,
    Run,
    init_or_restore,
    open_run,
    stop_together,
    write_json,
)
from dv2_jax.telemetry.recompilation import RecompilationCounter
from dv2_jax.toy import tasks
from dv2_jax.trainer.sft_step import sft_loop
from dv2_jax.trainer.state import TrainState
from dv2_jax.trainer.training_setup import sft_setup

DATA_SEED = 1  # added to task.seed, so that cold start and RL draw different questions


def run_sft(config: Config, policy: Policy | None = None) -> dict[str, Any]:
    """Train `config.sft.steps` optimizer steps; writes and returns `summary.json`.

    Ctrl-C ends the run after the current step with a checkpoint (`summary["interrupted"]` is True); the same command
    resumes it. `policy` replaces the one that `load_policy` assembles from `config`.
    """
    policy = load_policy(config) if policy is None else policy
    with open_run(config) as run:
        if run.finished is not None:
            run.display.line(f"already finished: {run.directory} after step {run.finished['steps']}")
            return run.finished
        try:
            summary = train(run, policy)
        except Interrupted:  # raised while the training data was generated
            summary = {"steps": run.start}
        summary["interrupted"] = summary["steps"] < config.sft.steps
        if distributed.is_main():
            write_json(run.directory / "summary.json", summary)
            if not summary["interrupted"]:
                write_json(run.directory / "training.json", provenance(config, summary))
        if summary["interrupted"]:
            run.display.line(f"stopped after step {summary['steps']}; the same command resumes")
    return summary


def train(run: Run, policy: Policy) -> dict[str, Any]:
    """Run the remaining steps; returns their entries of the summary."""
    config, sft = run.config, run.config.sft
    if sft.batch_rows % sft.microbatches:
        raise ConfigError(f"sft.batch_rows = {sft.batch_rows} is no multiple of sft.microbatches = {sft.microbatches}")
    started = time.monotonic()  # includes data generation
    setup = sft_setup(policy, config)
    step, spec = setup.train_step, setup.pack_spec
    failed_rows: set[str] = set()
    with ExitStack() as stack:
        iterator = stack.enter_context(closing(open_data(run, policy, spec, failed_rows)))
        state, extra = init_or_restore(run, policy, setup.optimizer_bundle)
        bar = stack.enter_context(run.display.track("SFT", sft.steps, done=run.start))
        if extra:
            iterator.set_state(extra["data"])
        recompilations = RecompilationCounter()
        before, last = extra.get("seconds", 0.0), {}
        consumed = HashingIterator(iterator, extra.get("data_sha256", ""))
        clock = time.monotonic()

        def on_step(number: int, metrics: dict[str, float], state: TrainState) -> bool:
            nonlocal clock
            seconds, clock = time.monotonic() - clock, time.monotonic()
            if number == run.start + 1:
                recompilations.reset()
            last.update(metrics, tokens_per_s=metrics["tokens"] / seconds, step_s=seconds)
            run.metrics.write(number, last | {"recompilations": recompilations.count})
            shown = {"loss": metrics["loss"], "gradient": metrics["grad_norm"], "speed, tokens/s": last["tokens_per_s"]}
            bar.step(shown)
            stop = run.stop_requested()
            if stop or number % sft.checkpoint_every == 0 or number == sft.steps:
                run.save(number, state, consumed.state() | {"seconds": before + clock - started})
            return stop or number == sft.steps

        if run.start < sft.steps:
            step.warmup(state.params, spec, policy.mesh)
            state = sft_loop(state, consumed, step, on_step, mesh=policy.mesh)
        return {
            "steps": int(state.step),
            "loss": last.get("loss"),
            "tokens_per_s": last.get("tokens_per_s"),
            "recompilations": recompilations.count,
            "rows_failed": len(failed_rows),
            "data_sha256": consumed.digest,
            "seconds": before + time.monotonic() - started,
        }


class HashingIterator(Iterator[list[PackedBatch]]):
    """Iterates the steps of `source` and hashes all training data, including that of the steps before a restart."""

    def __init__(self, source: grain.DatasetIterator, digest: str):
        self._source, self.digest = source, digest

    def __next__(self) -> list[PackedBatch]:
        step = next(self._source)
        hashed = hashlib.sha256(self.digest.encode())
        for batch in step:
            for array in (batch.token_ids, batch.loss_weight, batch.positions, batch.vision.patches):
                hashed.update(np.ascontiguousarray(array))
        self.digest = hashed.hexdigest()
        return step

    def state(self) -> dict[str, Any]:
        """Return the checkpoint state, from which iteration resumes with the next step."""
        return {"data": self._source.get_state(), "data_sha256": self.digest}


def provenance(config: Config, summary: dict[str, Any]) -> dict[str, Any]:
    """Describe how the weights were trained (`training.json`): command, seed, data hash, machine and versions."""
    return {
        "command": "python -m dv2_jax.train " + shlex.join(sys.argv[1:]),
        "seed": config.run.seed,
        "steps": summary["steps"],
        "final_loss": summary["loss"],
        "data_sha256": summary["data_sha256"],
        "wall_seconds": round(summary["seconds"]),
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {jax.device_count()} {jax.default_backend()} devices",
        "versions": {name: version(name) for name in ("dv2_jax", "jax", "flax", "optax")},
    }


def open_data(run: Run, policy: Policy, spec: PackSpec, failed_rows: set[str]) -> grain.DatasetIterator:
    """Open the iterator over steps for the data source `sft.data`.

    The ids of rows that pass the check of the file and still cannot be encoded are added to `failed_rows`.
    """
    config, sft = run.config, run.config.sft
    encoder = ChatEncoder(policy.tokenizer, config.image, policy.stop_strings)
    stepwise = functools.partial(loader.packed_batches, spec=spec, seed=config.run.seed, microbatches=sft.microbatches)
    if sft.data == "pretrain":
        from dv2_jax.toy.pretraining import Curriculum

        return loader.stream_batches(
            lambda: Curriculum(encoder, config.agent, config.run.seed), spec, microbatches=sft.microbatches
        )
    if sft.data == "cold_start":
        return stepwise(_cold_start(run, policy), sft_data.from_trajectory(encoder))
    conversations = CheckedData.of_run(run, policy.tokenizer).read_conversations(sft.data)

    def log_failed(example_id: str, reason: str) -> None:
        if example_id not in failed_rows:
            failed_rows.add(example_id)
            run.display.line(f"skipped: {example_id}: {reason}")

    return stepwise(conversations, sft_data.from_conversation(encoder, spec, log_failed))


def _cold_start(run: Run, policy: Policy) -> list[sft_data.StoredTrajectory]:
    """Generate the trajectories of the scripted solver with the real tools, once per run directory, and load them."""
    from dv2_jax.rollout.tools_client import open_tools
    from dv2_jax.toy.teacher import correct_demonstrations

    config, directory = run.config, run.directory / "data"
    with stop_together(), ExitStack() as stack:
        if distributed.is_main():
            questions = tasks.make_questions(
                "train", config.sft.examples, config.task.seed + DATA_SEED, config.task.skills
            )
            prompt_encoder = PromptEncoder(policy.tokenizer, config.image, config.agent)
            bar = stack.enter_context(run.display.track("cold-start trajectories", len(questions), unit="questions"))
            stack.enter_context(run.spans.span("data"))
            tools = stack.enter_context(open_tools(config, run.directory))
            sft_data.generate_trajectories(
                lambda part, seed: correct_demonstrations(part, tools, prompt_encoder, seed, tools_config=config.tools),
                questions,
                directory,
                policy.tokenizer,
                seed=config.run.seed,
                advance=run.progress_callback(bar),
            )
    return sft_data.stored_trajectories(directory)
