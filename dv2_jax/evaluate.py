"""Evaluates a policy: `python -m dv2_jax.evaluate [--config=configs/evaluate.py[:PRESET]] [--config.model.init=…]`.

Answers the held-out questions with greedy decoding and tools, and prints accuracy and tool use per skill. Writes
`results.json`, `trajectories/` and `report/index.html` into the run directory. On several hosts, start the same command
on every host: questions are sharded over hosts; process 0 writes the results of all and the trajectories of its shard.
`--config.eval.baselines=guessing,no_tools` adds baselines; `--config.eval.compare=package:base,checkpoint:runs/sft` evaluates
further policies on the same questions, for one table: `--config=configs/paper_stages.py` does so for the paper's stages.
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
    from dv2_jax.evaluation.stage_plan import Stage, check_comparable, evaluation_stages
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
    policy, stages = load_policy(config), evaluation_stages(config)
    check_comparable(policy, stages)
    run_dir.mkdir(parents=True, exist_ok=True)
    data = CheckedData(config, policy.tokenizer, run_dir, Display(enabled=main), is_training=False)
    questions = benchmark_questions(config.task, data.read)
    if main:
        write_json(run_dir / "config.json", config.to_dict())
        # Files that an earlier evaluation of the same name wrote.
        for name in (*(stage.name for stage in stages), "no_tools"):
            (run_dir / "trajectories" / f"{name}.jsonl").unlink(missing_ok=True)
    described = [stage.to_dict() for stage in stages]
    if "no_tools" in config.eval.baselines:
        described.append(Stage("no_tools", "no tools", config.model.init).to_dict())
    results: dict = {
        "model": config.model.init,
        "questions": len(questions),
        "rows_left_out": data.rows_left_out,
        "stages": described,
    }
    with (
        open_session(policy, config, run_dir) as session,
        TrajectoryWriter(run_dir / "trajectories", session.tokenizer, enabled=main) as writer,
    ):
        for stage in stages:
            with console.status(f"loading {stage.init} and compiling"):
                session.load_params(stage.init)
            result = _answer(session, questions, f"answering: {stage.title}", console)
            results[stage.name] = result.summary()
            writer.write(result.trajectories, stage=stage.name)
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
    print_comparison(results, f"{config.model.init}, {len(questions)} held-out questions", console)
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
