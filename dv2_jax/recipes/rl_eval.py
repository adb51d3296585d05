"""Evaluation of an RL run's policies: its initial and final one, and those that it is compared with."""

from __future__ import annotations

import json
from typing import Any

from dv2_jax.evaluation.answering import answer_questions
from dv2_jax.evaluation.stage_plan import Stage, rl_stages
from dv2_jax.evaluation.summary import summarize
from dv2_jax.model.params import Params
from dv2_jax.parallel import distributed
from dv2_jax.policy import Policy
from dv2_jax.recipes.run import Run, stop_together, write_json
from dv2_jax.rollout.question_sources import eval_questions
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.telemetry.stage_titles import FINAL, INITIAL, NAMES_BEFORE_0_2
from dv2_jax.telemetry.trajectories import TrajectoryWriter


class StageEvaluator:
    """Evaluates the policies of `rl_stages`, each once per run directory (cached in `evaluations/<name>.json`)."""

    def __init__(self, run: Run, policy: Policy, session: RolloutSession, writer: TrajectoryWriter):
        self.run, self.policy, self.session, self.writer = run, policy, session, writer
        self.stages = rl_stages(run.config)
        self._results: dict[str, dict[str, Any]] = {}

    @property
    def complete(self) -> bool:
        """True once every policy has a result."""
        return all(stage.name in self._results for stage in self.stages)

    def evaluate_initial(self, params: Params, *, at_start: bool) -> None:
        """Evaluate the policies before RL; `params` are the current weights, which are the initial ones if `at_start`."""
        for stage in self.stages:
            if stage.name == FINAL or self._load_cached(stage.name):
                continue
            current = stage.name == INITIAL and at_start
            weights = params if current else self.policy.load_weights(self.run.config.run.seed, stage.init)
            self._evaluate(stage, weights, version=0)

    def evaluate_final(self, params: Params) -> None:
        """Evaluate the trained policy."""
        trained = self.run.start < self.run.config.rl.steps  # a cached result is that of the weights before
        for stage in self.stages:
            if stage.name == FINAL and (trained or not self._load_cached(FINAL)):
                self._evaluate(stage, params, version=self.run.config.rl.steps)

    def summary(self) -> dict[str, Any]:
        """Return the results by name and the list `stages` that describes them, in display order."""
        done = [stage for stage in self.stages if stage.name in self._results]
        results = {stage.name: self._results[stage.name] for stage in done}
        return results | {"stages": [stage.to_dict() for stage in done]}

    def _load_cached(self, name: str) -> bool:
        """Load a result from the run directory; returns False if there is none. Collective."""
        if name not in self._results:
            names = [name, *(old for old, new in NAMES_BEFORE_0_2.items() if new == name)]
            paths = [self.run.directory / "evaluations" / f"{stored}.json" for stored in names]
            path = next((path for path in paths if distributed.is_main() and path.exists()), None)
            if found := distributed.broadcast_from_main(None if path is None else json.loads(path.read_text())):
                self._results[name] = found
        return name in self._results

    def _evaluate(self, stage: Stage, params: Params, version: int) -> None:
        config, name = self.run.config, stage.name
        questions = eval_questions(config.task, self.run.read_rows)
        self.session.set_params(params, version)
        own = len(distributed.shard_for_process(range(len(questions))))
        with (
            stop_together(),
            self.run.display.track(f"evaluation: {stage.title}", own) as bar,
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
            f"{stage.title}: accuracy {overall.accuracy:.1%}, reward {overall.reward:.3f},"
            f" {overall.tool_calls:.2f} tool calls, {overall.n} questions"
        )
