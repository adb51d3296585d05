"""The RL training loop: rollout, update and weight sync of every step, with checkpoints and metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dv2_jax.data.packing import PackedBatch
from dv2_jax.policy import Policy
from dv2_jax.recipes.rl_reference import ReferencePolicy
from dv2_jax.recipes.rl_rollout import RewardFn, RolloutCollector, count_failed_rows, rollout_metrics
from dv2_jax.recipes.run import Interrupted, Run, init_or_restore
from dv2_jax.rl.advantage_registry import compute_advantages, groups_with_reward_variance
from dv2_jax.rl.batch import Minibatch, make_minibatches, mask_truncated
from dv2_jax.rl.policy_metrics import token_metric_means
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.telemetry.progress import ProgressTask
from dv2_jax.telemetry.recompilation import RecompilationCounter
from dv2_jax.telemetry.trajectories import TrajectoryWriter
from dv2_jax.trainer.train_step import pack_local, to_global_array
from dv2_jax.trainer.training_setup import rl_setup

SHOWN = {  # metric -> its name in the progress bar
    "reward": "reward",
    "accuracy": "accuracy",
    "tool_rate": "tools",
    "tool_calls": "calls",
    "tokens_per_s": "speed, tokens/s",
    "step_s": "step, s",
}


class Training:
    """The training loop and its state: weights, steps done and the index of the next prompt."""

    def __init__(
        self, run: Run, policy: Policy, session: RolloutSession, writer: TrajectoryWriter, reward_fn: RewardFn
    ):
        config = run.config
        self.run, self.policy, self.session, self.writer, self.rl = run, policy, session, writer, config.rl
        setup = rl_setup(policy, config)
        self.train_step, self.pack_spec = setup.train_step, setup.pack_spec
        hosts, spec = policy.num_hosts, self.pack_spec
        self.local_spec = replace(spec, rows=spec.rows // hosts, groups=spec.groups // hosts)
        self.state, extra = init_or_restore(run, policy, setup.optimizer_bundle)
        self.reference = ReferencePolicy(config, policy) if config.rl.kl_coefficient else None
        self.rollouts = RolloutCollector(run, session, reward_fn)
        self.done = run.start
        self.next_prompt = extra.get("next_place", 0)
        self.max_logprob_gap = extra.get("gap_max", 0.0)
        self.seconds_before = extra.get("seconds", 0.0)  # wall time of the interrupted runs that this one resumes
        self._started = time.monotonic()
        self._counter: RecompilationCounter | None = None  # created after the first step, which compiles
        self._logged_compilations = 0  # number of recompilations already logged

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
            ServiceOutage: judge or tools service gave no results for too long; the state is that of the last completed step.
        """
        self.rollouts.prefetch(self.next_prompt)
        self.train_step.warmup(self.state.params, self.pack_spec, self.policy.mesh, self._complete)
        with self.run.display.track("RL", self.rl.steps, done=self.done) as bar:
            while self.done < self.rl.steps:
                self._log(self.run_step(), bar)
                if self._counter is None:
                    self._counter = RecompilationCounter()
                stop = self.run.stop_requested()
                if stop or self.done % self.rl.checkpoint_every == 0 or self.done == self.rl.steps:
                    self.save()
                if stop:
                    raise Interrupted

    def _log(self, row: dict[str, float], bar: ProgressTask) -> None:
        self.run.metrics.write(self.done, row)
        bar.step({name: row[metric] for metric, name in SHOWN.items()})

    def run_step(self) -> dict[str, float]:
        """Run one step: rollout, update and weight sync; returns its metrics."""
        spans, number = self.run.spans, self.done + 1
        spans.take_totals()
        started = time.monotonic()
        engine_before = replace(self.session.engine.stats)
        with spans.span("rollout", step=number):
            rollout = self.rollouts.collect(number, self.next_prompt)
        self.next_prompt = rollout.next_prompt
        stats = [trajectory_stats for group in rollout.groups for trajectory_stats in group.stats]
        trajectories = [trajectory for group in rollout.groups for trajectory in group.trajectories]
        rewards = np.array([s.reward for s in stats])
        tokens = np.array([s.loss_tokens for s in stats])
        valid = tokens > 0
        groups = np.repeat(np.arange(len(rollout.groups)), self.rl.group_size)
        advantages = compute_advantages(self.rl.advantage, rewards, groups, valid)
        if self.rl.mask_truncated:
            tokens = mask_truncated(tokens, [s.finish for s in stats])
        self.session.drop_engine_weights()
        with spans.span("update", step=number):
            train_metrics = self.train_on(make_minibatches(trajectories, advantages, self.rl, tokens))
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
        row = rollout_metrics(rollout.sampled) | train_metrics
        return (
            row
            | {
                "groups_informative": len(with_variance) / (groups[-1] + 1),
                "prompts_drawn": len(rollout.sampled) // self.rl.group_size,
                "rows_failed": count_failed_rows(rollout.sampled, self.rl.group_size),
                "step_s": seconds,
                "tokens_per_s": sum(s.tokens for s in rollout.sampled) / seconds,
                "recompilations": self.recompilations(),
            }
            | {f"seconds/{name}": value for name, value in spans.take_totals().items()}
            | {f"engine/{name}": value for name, value in self.session.engine.stats.since(engine_before).items()}
        )

    def train_on(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """Take one optimizer step per minibatch; returns metrics averaged over minibatches.

        The log-prob gap is that of the first minibatch: only for it are the trainer's weights those of the sampler.
        """
        rows = []
        for minibatch in minibatches:
            batches = pack_local(minibatch.examples, self.local_spec, minibatch.denominator)
            microbatches = [self._complete(to_global_array(batch, self.policy.mesh)) for batch in batches]
            self.state, metrics = self.train_step(self.state, microbatches)
            rows.append(token_metric_means(metrics) | {"microbatches": len(batches)})
        gap = {name: value for name, value in rows[0].items() if name.startswith("logprob_gap_")}
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | gap

    def _complete(self, batch: PackedBatch) -> PackedBatch:
        """Add the reference log-probs of the KL term, if there is one, to a batch on the devices."""
        return batch if self.reference is None else self.reference.with_logprobs(batch)
