"""Reinforcement learning with real tools. One step:

    prompts (by place in the run's order) -> group_size trajectories each, through engine and tools -> rewards
    -> group advantages -> packed microbatches -> clipped policy gradient -> new weights, which the engine shares

The policy is evaluated before and after on held-out questions. Invariants: a step is a function of the checkpoint
before it, so a killed run trains on no trajectory twice and on none that other weights sampled; what the
infrastructure lost is out of the loss; after the first step nothing is compiled.

Several hosts divide the prompts of a step: each rolls out and packs its own. They exchange what came of them (rewards,
lengths), from which all compute the same advantages and denominators, and add up one gradient.
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
from dv2_jax.evaluation.summary import Outcome, count
from dv2_jax.evaluation.table import print_comparison
from dv2_jax.parallel import distributed
from dv2_jax.recipes.rl_eval import STAGES, Stages
from dv2_jax.recipes.rl_prompts import Group, Prompts, gather_groups, group_requests
from dv2_jax.recipes.run import Policy, Run, Stopped, begin, load_policy, make_learning, open_run, write_json
from dv2_jax.report.page import write_report
from dv2_jax.rewards import assign
from dv2_jax.rl.advantages import group_advantages, informative_groups
from dv2_jax.rl.batch import Minibatch, make_minibatches
from dv2_jax.rl.losses import with_algorithm
from dv2_jax.rl.policy_metrics import token_means
from dv2_jax.rollout.session import Session, open_session
from dv2_jax.telemetry.recompilation import RecompilationCounter
from dv2_jax.telemetry.trajectories import TrajectoryWriter
from dv2_jax.trainer.rl_step import make_rl_step, make_scorer
from dv2_jax.trainer.state import Params, TrainState
from dv2_jax.trainer.train_step import Update, pack_share, place_share


def run_rl(config: Config) -> dict[str, Any]:
    """Train `config.rl.steps` steps between two evaluations; returns and writes `summary.json`.

    Ctrl-C ends after a step with a checkpoint (`summary["interrupted"]`); the same command continues.
    """
    started = time.monotonic()
    config = replace(config, rl=with_algorithm(config.rl))
    check(config)
    policy = load_policy(config)
    with ExitStack() as stack:
        run = stack.enter_context(open_run(config))
        session = stack.enter_context(open_session(config, run.directory, mesh=policy.mesh))
        writer = stack.enter_context(
            TrajectoryWriter(run.directory / "trajectories", policy.tokenizer, enabled=distributed.is_main())
        )
        training = Training(run, policy, session, writer)
        stages = Stages(run, policy, session, writer)
        summary: dict[str, Any] = {}
        try:
            with run.spans.span("compile"):
                session.set_params(training.state.params, training.version)
            run.display.line(f"engine: {session.engine.compiled_programs()} programs")
            summary |= stages.before(training.state.params, at_start=run.start == 0)
            session.set_params(training.state.params, training.version)
            training.steps()
            if training.done == config.rl.steps:
                summary |= stages.after(training.state.params)
        except Stopped:
            training.save()
        summary |= {
            "logprob_gap_max": training.gap_max,
            "recompilations": training.late_programs(),
            "seconds": time.monotonic() - started + training.seconds_before,
            "steps": training.done,
            "interrupted": training.done < config.rl.steps or not stages.complete,
        }
        if distributed.is_main():
            write_json(run.directory / "summary.json", summary)
        exported = "" if summary["interrupted"] else export(run.directory / "export", policy, training.state, config)
        if distributed.is_main():
            finish(run, stages, summary, exported)
    return summary


def check(config: Config) -> None:
    """Refuse what cannot work, before anything starts."""
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
    """The loop's state: weights, what was done, and where in the order of prompts the next step begins."""

    def __init__(self, run: Run, policy: Policy, session: Session, writer: TrajectoryWriter):
        config = run.config
        self.run, self.policy, self.session, self.writer, self.rl = run, policy, session, writer, config.rl
        learning = make_learning(config, policy, config.rl.steps * config.rl.minibatches)
        self.update: Update = make_rl_step(
            policy.graphdef,
            config.rl,
            learning.optimizer,
            learning.trainable,
            temperature=config.sampling.temperature,
            forbidden=session.forbidden,
            schedule=learning.schedule,
            param_shardings=policy.shardings,
        )
        rows, shards = config.rl.microbatch_rows, policy.data_shards
        if rows % shards:
            raise ConfigError(f"rl.microbatch_rows = {rows} is no multiple of the {shards} data shards of the mesh")
        buckets = loader.image_buckets(
            config.image, config.agent, policy.config, rows=rows // shards, row_tokens=config.rl.row_tokens
        )
        self.spec = PackSpec(policy.config, rows, config.rl.row_tokens, buckets, groups=shards)
        hosts = distributed.process_count()
        self.own_spec = replace(self.spec, rows=rows // hosts, groups=shards // hosts)  # of this host's devices
        self.state, extra = begin(run, policy, learning)
        self.reference = self._reference(config)
        self.done = run.start
        self.next_place = extra.get("next_place", 0)
        self.gap_max = extra.get("gap_max", 0.0)
        self.seconds_before = extra.get("seconds", 0.0)  # of the runs that this one continues
        self._started = time.monotonic()
        self._counter: RecompilationCounter | None = None  # from the end of the first step on
        self._told = 0  # late programs that were named
        self.questions = Prompts(config)

    @property
    def version(self) -> int:
        """Of the weights: steps done."""
        return self.done

    def late_programs(self) -> int:
        """Programs compiled after this process's first step, or by the engine after its warm-up."""
        after_first = () if self._counter is None else self._counter.names
        for name in after_first[self._told :]:
            self.run.display.line(f"compiled after the first step: {name}")
            self.run.spans.instant("compiled", program=name)
        self._told = len(after_first)
        # The engine's are counted by itself as well, from before the first step on.
        return max(len(after_first), self.session.recompilations())

    def save(self) -> None:
        extra = {
            "next_place": self.next_place,
            "gap_max": self.gap_max,
            "seconds": self.seconds_before + time.monotonic() - self._started,
        }
        self.run.save(self.done, self.state, extra)

    def steps(self) -> None:
        """Train until all steps are done. Raises Stopped after the step in which a signal came."""
        self.questions.ahead(self.next_place, self.rl.prompts_per_step)
        self.update.prepare(self.state.params, self.spec, self.policy.mesh)
        with self.run.display.track("RL", self.rl.steps, done=self.done) as bar:
            while self.done < self.rl.steps:
                row = self.step()
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
                    raise Stopped

    def step(self) -> dict[str, float]:
        """One step; returns its metrics."""
        spans, number = self.run.spans, self.done + 1
        spans.take_totals()
        started = time.monotonic()
        with spans.span("rollout", step=number):
            chosen, sampled = self.collect(number)
        outcomes = [outcome for group in chosen for outcome in group.outcomes]
        trajectories = [trajectory for group in chosen for trajectory in group.trajectories]
        rewards = np.array([outcome.reward for outcome in outcomes])
        tokens = np.array([outcome.loss_tokens for outcome in outcomes])
        valid = tokens > 0
        groups = np.repeat(np.arange(len(chosen)), self.rl.group_size)
        advantages = group_advantages(rewards, groups, valid=valid, normalize_std=self.rl.normalize_std)
        self.session.release()
        with spans.span("update", step=number):
            learned = self.learn(make_minibatches(trajectories, advantages, self.rl, tokens.tolist()))
        self.done = number
        self.session.set_params(self.state.params, self.version)
        with spans.span("write", step=number):
            here = [i for i, trajectory in enumerate(trajectories) if trajectory is not None]
            kept = here[: self.rl.keep_trajectories]
            self.writer.write([trajectories[i] for i in kept], stage="train", step=number, advantages=advantages[kept])
        seconds = time.monotonic() - started
        self.gap_max = max(self.gap_max, learned["logprob_gap_max"])
        informative = informative_groups(rewards, groups, valid)
        # Also of the groups that dynamic sampling left out: the curves show the policy, not what was chosen from it.
        row = rollout_metrics(sampled) | learned
        return (
            row
            | {
                "groups_informative": len(informative) / (groups[-1] + 1),
                "prompts_drawn": len(sampled) // self.rl.group_size,
                "step_s": seconds,
                "tokens_per_s": sum(outcome.tokens for outcome in sampled) / seconds,
                "recompilations": self.late_programs(),
            }
            | {f"seconds/{name}": value for name, value in spans.take_totals().items()}
        )

    def collect(self, number: int) -> tuple[list[Group], list[Outcome]]:
        """The scored groups that a step learns from, and what came of all that were sampled for them.

        With dynamic sampling, groups whose rewards are all equal are replaced by groups of further prompts, for up to
        `max_sampling_rounds` rounds; what is then still missing is filled up with such groups.
        """
        wanted, size = self.rl.prompts_per_step, self.rl.group_size
        rounds = self.rl.max_sampling_rounds if self.rl.dynamic_sampling else 1
        informative: list[Group] = []
        others: list[Group] = []
        everything: list[Outcome] = []
        for _ in range(rounds):
            questions = self.questions.take(self.next_place, wanted)
            requests = group_requests(questions, number, size)
            with self.run.display.track(f"step {number}: trajectories", len(requests)) as bar:
                sampled = self.session.scheduler().run(requests, on_finish=lambda _: bar.advance())
            assign(sampled, self.policy.tokenizer, self.run.config.reward)
            self.next_place += wanted
            self.questions.ahead(self.next_place, wanted)
            for group in gather_groups(sampled, size):
                everything += group.outcomes
                (informative if group.informative or not self.rl.dynamic_sampling else others).append(group)
            if len(informative) >= wanted:
                break
        return (informative + others)[:wanted], everything

    def learn(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """One optimizer step per minibatch; metrics are means over them, the log-prob gap is that of the first.

        Only the first minibatch is computed with the very weights that sampled it.
        """
        rows = []
        for minibatch in minibatches:
            batches = pack_share(minibatch.examples, self.own_spec, minibatch.denominator)
            placed = [self._with_reference(place_share(b, self.policy.mesh)) for b in batches]
            self.state, metrics = self.update(self.state, placed)
            rows.append(token_means(metrics) | {"microbatches": len(batches)})
        gap = {f"logprob_{name}": rows[0][name] for name in ("gap_max", "gap_abs", "gap_k1", "gap_k3")}
        names = [name for name in rows[0] if not name.startswith("gap_")]
        return {name: float(np.mean([row[name] for row in rows])) for name in names} | gap

    def _reference(self, config: Config) -> Params | None:
        """The policy that a KL term refers to: the one that the run began with."""
        if not config.rl.kl_coefficient:
            return None
        from dv2_jax.checkpoint.policy_spec import load_weights

        self._score = make_scorer(
            self.policy.graphdef, temperature=config.sampling.temperature, forbidden=self.session.forbidden
        )
        return load_weights(config.model, self.policy.config, mesh=self.policy.mesh, seed=config.run.seed)

    def _with_reference(self, batch: PackedBatch) -> PackedBatch:
        if self.reference is None:
            return batch
        return replace(batch, reference_logprobs=self._score(self.reference, batch))


def rollout_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Counts of a step's trajectories, overall and per skill, flat."""
    overall, skills = count(outcomes)

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


def finish(run: Run, stages: Stages, summary: dict[str, Any], exported: str | Path) -> None:
    """Report, export and table of a run; of an interrupted one, the report and where it stands."""
    run.metrics.close()
    report = write_report(run.directory)
    if summary["interrupted"]:
        run.display.line(f"stopped after step {summary['steps']} with a checkpoint; the same command continues")
        return
    print_comparison({name: summary[name] for name in stages.names}, f"{run.config.run.name}, held-out questions")
    run.display.line(f"{run.directory / 'summary.json'}\n{report}\n{exported}")


def export(folder: Path, policy: Policy, state: TrainState, config: Config) -> str | Path:
    """Write the PyTorch folder, replacing the one of an earlier end of this run. Every process calls it."""
    import shutil

    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    return export_hf(folder, state.params, policy.architecture, config.image)
