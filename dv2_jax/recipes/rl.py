"""Reinforcement learning with real tools. One step:

    prompts (by index in the run's order) -> group_size trajectories each, through engine and tools -> rewards
    -> group advantages -> packed microbatches -> clipped policy gradient -> weight sync to the engine

The policy is evaluated on held-out questions before and after training (`eval.stages`), and so are those that it is
compared with (`eval.compare`).

Invariants: each step depends only on the last checkpoint, so after a crash no trajectory is trained on twice and
training stays on-policy. Trajectories lost to infrastructure errors are masked. Nothing compiles after the first step.

The prompts of a step are sharded over hosts: each host rolls out and packs its own. Hosts exchange rewards and lengths,
from which all compute the same advantages and denominators; the gradient is all-reduced.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dv2_jax.checkpoint.hf_export import export_hf
from dv2_jax.config import Config, ConfigError
from dv2_jax.evaluation.analysis.run_analysis import analyze_run
from dv2_jax.evaluation.stage_plan import check_comparable, rl_stages
from dv2_jax.evaluation.table import print_comparison
from dv2_jax.parallel import distributed
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.policy import Policy, load_policy
from dv2_jax.recipes.checked_data import CheckedData
from dv2_jax.recipes.rl_eval import StageEvaluator
from dv2_jax.recipes.rl_rollout import RewardFn
from dv2_jax.recipes.rl_training import Training
from dv2_jax.recipes.run import Interrupted, Run, open_run, write_json
from dv2_jax.rewards import compute_rewards, prepare_rewards
from dv2_jax.rl.algorithms import describe_algorithm, resolve_algorithm
from dv2_jax.rollout.session import open_session
from dv2_jax.telemetry.trajectories import TrajectoryWriter
from dv2_jax.trainer.state import TrainState


def run_rl(config: Config, reward_fn: RewardFn = compute_rewards, policy: Policy | None = None) -> dict[str, Any]:
    """Train `config.rl.steps` steps between two evaluations; writes and returns `summary.json`.

    `reward_fn` scores the trajectories of training; evaluations score by `config.reward`. `policy` replaces the one that
    `load_policy` assembles from `config`.

    Ctrl-C ends the run after the current step with a checkpoint (`summary["interrupted"]` is True); the same command
    resumes it.

    Raises:
        ConfigError: the configuration cannot work, or the judge that it names cannot be used.
        RowError: a data file cannot be used under `data.bad_rows`.
        ServiceOutage: judge or tools service gave no results for too long; a checkpoint was written.
    """
    started = time.monotonic()
    config = complete_config(config)
    check_config(config)
    policy = load_policy(config) if policy is None else policy
    check_comparable(policy, rl_stages(config))
    with ExitStack() as stack:
        prepare = partial(prepare_rewards, config.reward)
        run = stack.enter_context(open_run(config, complete_config, prepare))
        if run.finished is not None:
            if (run.directory / "export").is_dir():
                return report_finished(run)
            prepare()
        run.display.line(describe_algorithm(config.rl))
        try:
            data = CheckedData.of_run(run, policy.tokenizer)
            data.check_tasks()
        except Interrupted:
            run.display.line("stopped while the data was checked; the same command starts again")
            return {"steps": run.start, "interrupted": True}
        run.read_rows = data.read
        session = stack.enter_context(open_session(policy, config, run.directory))
        writer = stack.enter_context(
            TrajectoryWriter(run.directory / "trajectories", policy.tokenizer, enabled=distributed.is_main())
        )
        training = Training(run, policy, session, writer, reward_fn)
        stages = StageEvaluator(run, policy, session, writer)
        try:
            with run.spans.span("compile"):
                session.set_params(training.state.params, training.version)
            run.display.line(f"engine: {session.engine.compiled_programs()} programs")
            stages.evaluate_initial(training.state.params, at_start=run.start == 0)
            session.set_params(training.state.params, training.version)
            training.run_steps()
            if training.done == config.rl.steps:
                stages.evaluate_final(training.state.params)
        except Interrupted:
            training.save()
        except ServiceOutage as error:
            training.save()
            message = f"{error}. Stopped after step {training.done} with a checkpoint; the same command continues"
            raise type(error)(message) from error
        summary = stages.summary() | {
            "logprob_gap_max": training.max_logprob_gap,
            "recompilations": training.recompilations(),
            "seconds": time.monotonic() - started + training.seconds_before,
            "steps": training.done,
            "interrupted": training.done < config.rl.steps or not stages.complete,
        }
        if distributed.is_main():
            write_json(run.directory / "summary.json", summary)
        exported = "" if summary["interrupted"] else export(run.directory / "export", policy, training.state, config)
        if distributed.is_main():
            report_run(run, summary, exported)
    return summary


def complete_config(config: Config) -> Config:
    """Fill in the values that follow from others, such as those of `rl.algorithm`."""
    return replace(config, rl=resolve_algorithm(config.rl))


def check_config(config: Config) -> None:
    """Check the configuration before any resource is allocated.

    Raises:
        ConfigError: a combination of values cannot work.
    """
    rl = config.rl
    rl_stages(config)
    if rl.group_size < 2:
        raise ConfigError(
            f"rl.group_size = {rl.group_size}: an advantage compares the members of a group; use at least 2"
        )
    if config.sampling.temperature <= 0:
        raise ConfigError(
            f"sampling.temperature = {config.sampling.temperature}: a greedy policy explores nothing; use 1.0"
        )
    if rl.prompts_per_step % rl.minibatches:
        raise ConfigError(
            f"rl.prompts_per_step = {rl.prompts_per_step} is no multiple of rl.minibatches = {rl.minibatches}"
        )
    if rl.prompts_per_step % (hosts := distributed.process_count()):
        raise ConfigError(
            f"rl.prompts_per_step = {rl.prompts_per_step} does not divide among {hosts} hosts; use a multiple of {hosts}"
        )
    if config.agent.max_total_tokens > rl.row_tokens:
        raise ConfigError(
            f"agent.max_total_tokens = {config.agent.max_total_tokens} exceeds rl.row_tokens = {rl.row_tokens}:"
            " a trajectory must fit into one row"
        )


def report_finished(run: Run) -> dict[str, Any]:
    """Write the report of a run that was finished before and print its results; returns its summary."""
    summary = run.finished or {}
    if distributed.is_main():
        report = analyze_run(run.directory).write_page()
        print_comparison(summary, f"{run.config.run.name}, held-out questions")
        run.display.line(f"already finished: {run.directory} after step {summary['steps']}\n{report}")
    return summary


def report_run(run: Run, summary: dict[str, Any], exported: str | Path) -> None:
    """Write the report and print the results table of a finished run, or how to resume an interrupted one."""
    run.metrics.close()
    report = analyze_run(run.directory).write_page()
    if summary["interrupted"]:
        run.display.line(f"stopped after step {summary['steps']} with a checkpoint; the same command resumes")
        return
    print_comparison(summary, f"{run.config.run.name}, held-out questions")
    run.display.line(f"{run.directory / 'summary.json'}\n{report}\n{exported}")


def export(folder: Path, policy: Policy, state: TrainState, config: Config) -> str | Path:
    """Export the policy to the Hugging Face layout, replacing an earlier export of this run. Collective."""
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    return export_hf(folder, state.params, policy.spec, config.image)
