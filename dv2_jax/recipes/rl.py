"""Reinforcement learning with real tools. One step:

    prompts (by index in the run's order) -> group_size trajectories each, through engine and tools -> rewards
    -> group advantages -> packed microbatches -> clipped policy gradient -> weight sync to the engine

The policy is evaluated on held-out questions before and after training.

Invariants: each step depends only on the last checkpoint, so after a crash no trajectory is trained on twice and
training stays on-policy. Trajectories lost to infrastructure errors are masked. Nothing compiles after the first step.

The prompts of a step are sharded over hosts: each host rolls out and packs its own. Hosts exchange rewards and lengths,
from which all compute the same advantages and denominators; the gradient is all-reduced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dv2_jax.checkpoint.hf_export import export_hf
from dv2_jax.config import Config, ConfigError
from dv2_jax.data import loader
from dv2_jax.data.packing import PackedBatch, PackSpec
from dv2_jax.evaluation.summary import aggregate
from dv2_jax.evaluation.table import print_comparison
from dv2_jax.model.params import Params
from dv2_jax.parallel import distributed
from dv2_jax.recipes.rl_eval import STAGES, StageEvaluator
from dv2_jax.recipes.rl_prompts import Group, PromptLoader, gather_groups, group_requests
from dv2_jax.recipes.run import (
    Interrupted,
    Policy,
    Run,
    init_or_restore,
    load_policy,
    make_optimizer_bundle,
    open_run,
    write_json,
)
from dv2_jax.report.page import write_report
from dv2_jax.rewards import JudgeOutage, compute_rewards, prepare_rewards
from dv2_jax.rewards.outage import raise_outage_together
from dv2_jax.rl.advantages import group_advantages, groups_with_reward_variance
from dv2_jax.rl.batch import Minibatch, make_minibatches
from dv2_jax.rl.losses import resolve_algorithm
from dv2_jax.rl.policy_metrics import token_metric_means
from dv2_jax.rollout.outcome import TrajectoryStats
from dv2_jax.rollout.session import RolloutSession, open_session
from dv2_jax.telemetry.recompilation import RecompilationCounter
from dv2_jax.telemetry.trajectories import TrajectoryWriter
from dv2_jax.trainer.rl_step import make_logprob_fn, make_rl_step
from dv2_jax.trainer.state import TrainState
from dv2_jax.trainer.train_step import TrainStep, pack_local, to_global_array


def run_rl(config: Config) -> dict[str, Any]:
    """Train `config.rl.steps` steps between two evaluations; writes and returns `summary.json`.

    Ctrl-C ends the run after the current step with a checkpoint (`summary["interrupted"]` is True); the same command
    resumes it.

    Raises:
        ConfigError: the configuration cannot work, or the judge that it names cannot be used.
        JudgeOutage: the judge stopped giving verdicts; a checkpoint was written.
    """
    started = time.monotonic()
    config = replace(config, rl=resolve_algorithm(config.rl))
    check_config(config)
    prepare_rewards(config.reward)
    policy = load_policy(config)
    with ExitStack() as stack:
        run = stack.enter_context(open_run(config))
        session = stack.enter_context(open_session(config, run.directory, mesh=policy.mesh))
        writer = stack.enter_context(
            TrajectoryWriter(run.directory / "trajectories", policy.tokenizer, enabled=distributed.is_main())
        )
        training = Training(run, policy, session, writer)
        stages = StageEvaluator(run, policy, session, writer)
        summary: dict[str, Any] = {}
        try:
            with run.spans.span("compile"):
                session.set_params(training.state.params, training.version)
            run.display.line(f"engine: {session.engine.compiled_programs()} programs")
            summary |= stages.evaluate_initial(training.state.params, at_start=run.start == 0)
            session.set_params(training.state.params, training.version)
            training.run_steps()
            if training.done == config.rl.steps:
                summary |= stages.evaluate_final(training.state.params)
        except Interrupted:
            training.save()
        except JudgeOutage as error:
            training.save()
            message = f"{error}. Stopped after step {training.done} with a checkpoint; the same command continues"
            raise JudgeOutage(message) from error
        summary |= {
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
            report_run(run, stages, summary, exported)
    return summary


def check_config(config: Config) -> None:
    """Check the configuration before any resource is allocated.

    Raises:
        ConfigError: a combination of values cannot work.
    """
    rl = config.rl
    if unknown := sorted(set(config.eval.stages) - set(STAGES)):
        raise ConfigError(f"eval.stages = {unknown}: there are {', '.join(STAGES)}")
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


class Training:
    """The training loop and its state: weights, steps done and the index of the next prompt."""

    def __init__(self, run: Run, policy: Policy, session: RolloutSession, writer: TrajectoryWriter):
        config = run.config
        self.run, self.policy, self.session, self.writer, self.rl = run, policy, session, writer, config.rl
        optimizer_bundle = make_optimizer_bundle(config, policy, config.rl.steps * config.rl.minibatches)
        self.train_step: TrainStep = make_rl_step(
            policy.graphdef,
            config.rl,
            optimizer_bundle.optimizer,
            optimizer_bundle.trainable,
            temperature=config.sampling.temperature,
            forbidden=session.forbidden,
            schedule=optimizer_bundle.schedule,
            param_shardings=policy.shardings,
        )
        rows, shards = config.rl.microbatch_rows, policy.data_shards
        if rows % shards:
            raise ConfigError(f"rl.microbatch_rows = {rows} is no multiple of the {shards} data shards of the mesh")
        buckets = loader.image_buckets(
            config.image, config.agent, policy.config, rows=rows // shards, row_tokens=config.rl.row_tokens
        )
        self.pack_spec = PackSpec(policy.config, rows, config.rl.row_tokens, buckets, groups=shards)
        hosts = distributed.process_count()
        self.local_spec = replace(self.pack_spec, rows=rows // hosts, groups=shards // hosts)  # rows of one host
        self.state, extra = init_or_restore(run, policy, optimizer_bundle)
        self.reference = self._reference(config)
        self.done = run.start
        self.next_prompt = extra.get("next_place", 0)
        self.max_logprob_gap = extra.get("gap_max", 0.0)
        self.seconds_before = extra.get("seconds", 0.0)  # wall time of the interrupted runs that this one resumes
        self._started = time.monotonic()
        self._counter: RecompilationCounter | None = None  # created after the first step, which compiles
        self._logged_compilations = 0  # number of recompilations already logged
        self.questions = PromptLoader(config)

    @property
    def version(self) -> int:
        """The version of the current weights: the number of steps done."""
        return self.done

    def recompilations(self) -> int:
        """Count and log the programs compiled after the first step, or by the engine after its warmup."""
        after_first = () if self._counter is None else self._counter.names
        for name in after_first[self._logged_compilations :]:
            self.run.display.line(f"compiled after the first step: {name}")
            self.run.spans.instant("compiled", program=name)
        self._logged_compilations = len(after_first)
        # The engine counts its own compilations from the end of its warmup, which precedes the first step.
        return max(len(after_first), self.session.recompilations())

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        extra = {
            "next_place": self.next_prompt,
            "gap_max": self.max_logprob_gap,
            "seconds": self.seconds_before + time.monotonic() - self._started,
        }
        self.run.save(self.done, self.state, extra)

    def run_steps(self) -> None:
        """Train until all steps are done.

        Raises:
            Interrupted: a signal arrived during the last step, after which a checkpoint was written.
        """
        self.questions.prefetch(self.next_prompt, self.rl.prompts_per_step)
        self.train_step.warmup(self.state.params, self.pack_spec, self.policy.mesh)
        with self.run.display.track("RL", self.rl.steps, done=self.done) as bar:
            while self.done < self.rl.steps:
                row = self.run_step()
                self.run.metrics.write(self.done, row)
                bar.step(
                    {
                        "reward": row["reward"],
                        "accuracy": row["accuracy"],
                        "tools": row["tool_rate"],
                        "calls": row["tool_calls"],
                        "speed, tokens/s": row["tokens_per_s"],
                        "step, s": row["step_s"],
                    }
                )
                if self._counter is None:
                    self._counter = RecompilationCounter()
                stop = self.run.stop_requested()
                if stop or self.done % self.rl.checkpoint_every == 0 or self.done == self.rl.steps:
                    self.save()
                if stop:
                    raise Interrupted

    def run_step(self) -> dict[str, float]:
        """Run one step: rollout, update and weight sync; returns its metrics."""
        spans, number = self.run.spans, self.done + 1
        spans.take_totals()
        started = time.monotonic()
        with spans.span("rollout", step=number):
            chosen, sampled = self.collect_groups(number)
        stats = [trajectory_stats for group in chosen for trajectory_stats in group.stats]
        trajectories = [trajectory for group in chosen for trajectory in group.trajectories]
        rewards = np.array([s.reward for s in stats])
        tokens = np.array([s.loss_tokens for s in stats])
        valid = tokens > 0
        groups = np.repeat(np.arange(len(chosen)), self.rl.group_size)
        advantages = group_advantages(rewards, groups, valid=valid, normalize_std=self.rl.normalize_std)
        self.session.drop_engine_weights()
        with spans.span("update", step=number):
            train_metrics = self.train_on(make_minibatches(trajectories, advantages, self.rl, tokens.tolist()))
        self.done = number
        self.session.set_params(self.state.params, self.version)
        with spans.span("write", step=number):
            local = [i for i, trajectory in enumerate(trajectories) if trajectory is not None]
            kept = local[: self.rl.keep_trajectories]
            self.writer.write([trajectories[i] for i in kept], stage="train", step=number, advantages=advantages[kept])
        seconds = time.monotonic() - started
        self.max_logprob_gap = max(self.max_logprob_gap, train_metrics["logprob_gap_max"])
        with_variance = groups_with_reward_variance(rewards, groups, valid)
        # Logged over all sampled groups, including those that dynamic sampling filtered out.
        row = rollout_metrics(sampled) | train_metrics
        return (
            row
            | {
                "groups_informative": len(with_variance) / (groups[-1] + 1),
                "prompts_drawn": len(sampled) // self.rl.group_size,
                "step_s": seconds,
                "tokens_per_s": sum(s.tokens for s in sampled) / seconds,
                "recompilations": self.recompilations(),
            }
            | {f"seconds/{name}": value for name, value in spans.take_totals().items()}
        )

    def collect_groups(self, number: int) -> tuple[list[Group], list[TrajectoryStats]]:
        """Sample and score groups; returns the groups to train on and the statistics of all sampled trajectories.

        With dynamic sampling (DAPO), zero-variance groups are replaced by groups of further prompts for up to
        `max_sampling_rounds` rounds; if groups are still missing then, zero-variance groups fill the step.
        """
        first_prompt, wanted, size = self.next_prompt, self.rl.prompts_per_step, self.rl.group_size
        rounds = self.rl.max_sampling_rounds if self.rl.dynamic_sampling else 1
        with_variance: list[Group] = []
        zero_variance: list[Group] = []
        all_stats: list[TrajectoryStats] = []
        for _ in range(rounds):
            questions = self.questions.take(self.next_prompt, wanted)
            requests = group_requests(questions, number, size)
            with self.run.display.track(f"step {number}: trajectories", len(requests)) as bar:
                sampled = self.session.scheduler().run(requests, on_finish=lambda _: bar.advance())
            try:
                with raise_outage_together():
                    compute_rewards(sampled, self.policy.tokenizer, self.run.config.reward)
            except JudgeOutage:
                self.next_prompt = first_prompt  # a resumed run repeats the step
                raise
            self.next_prompt += wanted
            self.questions.prefetch(self.next_prompt, wanted)
            for group in gather_groups(sampled, size):
                all_stats += group.stats
                if group.has_reward_variance or not self.rl.dynamic_sampling:
                    with_variance.append(group)
                else:
                    zero_variance.append(group)
            if len(with_variance) >= wanted:
                break
        return (with_variance + zero_variance)[:wanted], all_stats

    def train_on(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """Take one optimizer step per minibatch; returns metrics averaged over minibatches.

        The log-prob gap is that of the first minibatch: only for it are the trainer's weights those of the sampler.
        """
        rows = []
        for minibatch in minibatches:
            batches = pack_local(minibatch.examples, self.local_spec, minibatch.denominator)
            microbatches = [self._with_reference(to_global_array(b, self.policy.mesh)) for b in batches]
            self.state, metrics = self.train_step(self.state, microbatches)
            rows.append(token_metric_means(metrics) | {"microbatches": len(batches)})
        gap = {name: value for name, value in rows[0].items() if name.startswith("logprob_gap_")}
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | gap

    def _reference(self, config: Config) -> Params | None:
        """Load the reference policy of the KL term, the initial policy of the run; None without a KL term."""
        if not config.rl.kl_coefficient:
            return None
        from dv2_jax.checkpoint.policy_spec import load_weights

        self._logprob_fn = make_logprob_fn(
            self.policy.graphdef, temperature=config.sampling.temperature, forbidden=self.session.forbidden
        )
        return load_weights(config.model, self.policy.config, mesh=self.policy.mesh, seed=config.run.seed)

    def _with_reference(self, batch: PackedBatch) -> PackedBatch:
        if self.reference is None:
            return batch
        return replace(batch, reference_logprobs=self._logprob_fn(self.reference, batch))


def rollout_metrics(stats: Sequence[TrajectoryStats]) -> dict[str, float]:
    """Aggregate the statistics of a step's trajectories into flat metrics, overall and per skill."""
    overall, skills = aggregate(stats)

    def flat(result: Any) -> Iterator[tuple[str, float]]:
        for name, value in result.to_dict().items():
            if isinstance(value, dict):
                yield from ((f"{name}/{key}", number) for key, number in value.items())
            elif isinstance(value, (int, float)):
                yield name, value

    row = dict(flat(overall))
    for skill, result in skills.items():
        row |= {f"{name}/{skill}": getattr(result, name) for name in ("accuracy", "reward", "tool_rate", "tool_calls")}
    return row


def report_run(run: Run, stages: StageEvaluator, summary: dict[str, Any], exported: str | Path) -> None:
    """Write the report and print the results table of a finished run, or how to resume an interrupted one."""
    run.metrics.close()
    report = write_report(run.directory)
    if summary["interrupted"]:
        run.display.line(f"stopped after step {summary['steps']} with a checkpoint; the same command resumes")
        return
    print_comparison({name: summary[name] for name in stages.names}, f"{run.config.run.name}, held-out questions")
    run.display.line(f"{run.directory / 'summary.json'}\n{report}\n{exported}")


def export(folder: Path, policy: Policy, state: TrainState, config: Config) -> str | Path:
    """Export the policy to the Hugging Face layout, replacing an earlier export of this run. Collective."""
    import shutil

    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    return export_hf(folder, state.params, policy.spec, config.image)
