"""Evaluation of the stages of a run: the base policy, the cold-start policy and the RL policy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from dv2_jax.evaluation.answering import answer_questions
from dv2_jax.evaluation.summary import summarize
from dv2_jax.model.params import Params
from dv2_jax.parallel import distributed
from dv2_jax.policy import Policy
from dv2_jax.recipes.run import Run, stop_together, write_json
from dv2_jax.rollout.question_sources import eval_questions
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.telemetry.trajectories import TrajectoryWriter

STAGES = ("base", "cold_start", "rl")


class StageEvaluator:
    """Evaluates the stages of `eval.stages`, each once per run directory (cached in `evaluations/<stage>.json`)."""

    def __init__(self, run: Run, policy: Policy, session: RolloutSession, writer: TrajectoryWriter):
        self.run, self.policy, self.session, self.writer = run, policy, session, writer
        config = run.config
        # A run that starts from the base model has no cold-start stage: its initial policy is the base.
        self.initial = "base" if config.model.init == "package:base" else "cold_start"
        self.names = [
            n for n in STAGES if n in config.eval.stages and not (n == "cold_start" and self.initial == "base")
        ]
        self._results: dict[str, dict[str, Any]] = {}

    @property
    def complete(self) -> bool:
        """True once every stage has a result."""
        return all(name in self._results for name in self.names)

    def evaluate_initial(self, params: Params, *, at_start: bool) -> dict[str, dict]:
        """Evaluate the stages before RL; `params` are the current weights, which are the initial ones if `at_start`."""
        config = self.run.config
        for name in self.names:
            if name == "rl" or self._load_cached(name):
                continue
            if name == self.initial:
                source = config.model
            else:
                source = replace(config.model, init="package:base")
            same = name == self.initial and at_start
            weights = params if same else self.policy.load_weights(config.run.seed, source.init)
            self._evaluate(name, weights, version=0)
        return dict(self._results)

    def evaluate_final(self, params: Params) -> dict[str, dict]:
        """Evaluate the trained policy; returns the results of all stages."""
        if "rl" in self.names and not self._load_cached("rl"):
            self._evaluate("rl", params, version=self.run.config.rl.steps)
        return dict(self._results)

    def _load_cached(self, name: str) -> bool:
        """Load the result of a stage from the run directory; returns False if there is none. Collective."""
        if name not in self._results:
            path = self.run.directory / "evaluations" / f"{name}.json"
            written = distributed.is_main() and path.exists()
            if found := distributed.broadcast_from_main(json.loads(path.read_text()) if written else None):
                self._results[name] = found
        return name in self._results

    def _evaluate(self, name: str, params: Params, version: int) -> None:
        config = self.run.config
        questions = eval_questions(config.task, self.run.read_rows)
        self.session.set_params(params, version)
        own = len(distributed.shard_for_process(range(len(questions))))
        with (
            stop_together(),
            self.run.display.track(f"evaluation: {name}", own) as bar,
            self.run.spans.span("evaluation"),
        ):
            scheduler, advance = self.session.scheduler(temperature=0.0), self.run.progress_callback(bar)
            answered = answer_questions(
                questions, scheduler, self.policy.tokenizer, config.reward, on_progress=lambda _: advance()
            )
        result = summarize(answered)
        self._results[name] = result.summary()
        self.writer.write(result.trajectories, stage=name)
        if distributed.is_main():
            write_json(self.run.directory / "evaluations" / f"{name}.json", self._results[name])
        overall = result.overall
        self.run.display.line(
            f"{name}: accuracy {overall.accuracy:.1%}, reward {overall.reward:.3f},"
            f" {overall.tool_calls:.2f} tool calls, {overall.n} questions"
        )
