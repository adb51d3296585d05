"""Evaluates a policy: `python -m dv2_jax.evaluate [--config=configs/evaluate.py[:PRESET]] [--config.model.init=…]`.

Answers the held-out questions with greedy decoding and tools, and prints accuracy and tool use per skill. Writes
`results.json`, `trajectories/` and `report/index.html` into the run directory. On several hosts, start the same command
on every host: questions are sharded over hosts; process 0 writes the results of all and the trajectories of its shard.
`--config.eval.baselines=guessing,no_tools` adds baselines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dv2_jax.config import Config, ConfigError, run_command

if TYPE_CHECKING:
    from dv2_jax.data.question import Question
    from dv2_jax.evaluation.summary import EvalResult
    from dv2_jax.rollout.session import RolloutSession

BASELINES = ("guessing", "no_tools")
GUESSING_SAMPLE = 1000  # training questions from which the guessing baseline counts answers


def run(config: Config) -> dict:
    """Evaluates `config.model` and returns the content of `results.json`.

    Raises:
        ConfigError: a baseline is unknown or not available for these questions, or the judge cannot be used.
        RowError: a data file cannot be used under `data.bad_rows`.
        ServiceOutage: judge or tools service gave no results for too long.
    """
    if unknown := set(config.eval.baselines) - set(BASELINES):
        raise ConfigError(f"eval.baselines = {sorted(unknown)}: there are {', '.join(BASELINES)}")
    from rich.console import Console

    from dv2_jax.evaluation.baselines import RefusingTools
    from dv2_jax.evaluation.table import print_comparison
    from dv2_jax.parallel import distributed
    from dv2_jax.policy import load_policy
    from dv2_jax.recipes.checked_data import CheckedData
    from dv2_jax.recipes.run import write_json
    from dv2_jax.report.page import write_report
    from dv2_jax.rewards import prepare_rewards
    from dv2_jax.rollout.question_sources import benchmark_questions
    from dv2_jax.rollout.session import open_session
    from dv2_jax.telemetry.progress import Display
    from dv2_jax.telemetry.trajectories import TrajectoryWriter

    started = time.perf_counter()
    prepare_rewards(config.reward)
    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    main = distributed.is_main()
    console = Console(quiet=not main)
    run_dir = Path(config.run.root) / config.run.name
    if (run_dir / "checkpoints").exists():  # its config.json would no longer be that of the checkpoints
        raise ConfigError(f"{run_dir} is a training run: choose another folder with --config.run.name=NAME")
    run_dir.mkdir(parents=True, exist_ok=True)
    policy = load_policy(config)
    data = CheckedData(config, policy.tokenizer, run_dir, Display(enabled=main), is_training=False)
    questions = benchmark_questions(config.task, data.read)
    if main:
        write_json(run_dir / "config.json", config.to_dict())
        for stage in ("evaluate", "no_tools"):  # written by an earlier evaluation of the same name
            (run_dir / "trajectories" / f"{stage}.jsonl").unlink(missing_ok=True)
    results: dict = {"model": config.model.init, "questions": len(questions), "rows_left_out": data.rows_left_out}
    with open_session(policy, config, run_dir) as session:
        with console.status("loading the policy and compiling"):
            session.load_params()
        with TrajectoryWriter(run_dir / "trajectories", session.tokenizer, enabled=main) as writer:
            result = _answer(session, questions, "answering", console)
            results["evaluate"] = result.summary()
            writer.write(result.trajectories, stage="evaluate")
            if "no_tools" in config.eval.baselines:
                result = _answer(session, questions, "answering without tools", console, tools=RefusingTools())
                results["no_tools"] = result.summary()
                writer.write(result.trajectories, stage="no_tools")
        results["recompilations"] = session.recompilations()
    if "guessing" in config.eval.baselines:
        with console.status("reading training answers"):
            results["guessing"] = _guessing(config, questions)
    results["seconds"] = round(time.perf_counter() - started, 1)
    if not main:
        return results
    write_json(run_dir / "results.json", results)
    stages = {name: results[name] for name in ("evaluate", "no_tools") if name in results}
    print_comparison(stages, f"{config.model.init}, {len(questions)} held-out questions", console)
    if "guessing" in results:
        shares = ", ".join(f"{skill} {share:.1%}" for skill, share in results["guessing"].items())
        console.print(f"always the commonest training answer: {shares}")
    console.print(f"{run_dir / 'results.json'}\n{write_report(run_dir)}", soft_wrap=True)
    return results


def _answer(session: RolloutSession, questions: Sequence[Question], title: str, console, tools=None) -> EvalResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dv2_jax.evaluation.answering import evaluate
    from dv2_jax.parallel import distributed

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=len(distributed.shard_for_process(range(len(questions)))))
        scheduler = session.scheduler(temperature=0.0, tools=tools)
        return evaluate(questions, scheduler, session.tokenizer, session.config.reward, lambda _: progress.advance(bar))


def _guessing(config: Config, questions: Sequence[Question]) -> dict[str, float]:
    from dv2_jax.evaluation.baselines import guessing_accuracy
    from dv2_jax.rollout.question_sources import BUILTIN
    from dv2_jax.toy.tasks import make_questions

    if config.task.source != BUILTIN:
        raise ConfigError("eval.baselines = guessing: needs the embedded tasks (task.source=default)")
    # A sample suffices to find the commonest answer of each kind, and rendering the images takes time.
    train = make_questions("train", min(config.task.train_size, GUESSING_SAMPLE), config.task.seed, config.task.skills)
    return guessing_accuracy(questions, train)


def main() -> None:
    """Runs `dv2-evaluate`."""
    run_command(run, command="evaluate", default_config="configs/evaluate.py")


if __name__ == "__main__":
    main()
