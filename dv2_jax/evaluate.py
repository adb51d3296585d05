"""Evaluates a policy: `python -m dv2_jax.evaluate [--config=configs/evaluate.py[:PRESET]] [--config.model.init=…]`.

Answers the questions of one or more benchmarks with greedy decoding and tools, and prints scores, accuracy and tool use.
Writes `results.json`, `results/<benchmark>.json`, `trajectories/` and `report/index.html` into the run directory. On
several hosts, start the same command on every host: questions are sharded over hosts; process 0 writes the results of all
and the trajectories of its shard.
`--config.eval.benchmarks=embedded,path/to/rows.jsonl,my_package.my_module:Class` chooses benchmarks; `--list` shows them.
`--config.eval.baselines=guessing,no_tools` adds baselines; `--config.eval.compare=package:base,checkpoint:runs/sft` evaluates
further policies on the same questions, for one table: `--config=configs/paper_stages.py` does so for the paper's stages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dv2_jax.config import Config, ConfigError, RunFailure, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from dv2_jax.evaluation.benchmark_run import BenchmarkRun
    from dv2_jax.evaluation.stage_plan import Stage
    from dv2_jax.policy import Policy
    from dv2_jax.rollout.scheduler import ToolBackend
    from dv2_jax.rollout.session import RolloutSession
    from dv2_jax.telemetry.progress import Display
    from dv2_jax.telemetry.trajectories import TrajectoryWriter

BASELINES = ("guessing", "no_tools")


def run(config: Config) -> dict:
    """Evaluates `config.model` and returns the content of `results.json`.

    Raises:
        ConfigError: a benchmark or baseline is unknown or cannot be used, or the judge cannot be used.
        RowError: a data file cannot be used under `data.bad_rows`.
        RunFailure: the code of a benchmark cannot aggregate its scores; all results have been written.
        ServiceOutage: judge or tools service gave no results for too long.
    """
    from rich.console import Console

    from dv2_jax.evaluation.benchmark_run import BenchmarkRun
    from dv2_jax.evaluation.benchmarks.benchmark_registry import run_benchmarks
    from dv2_jax.evaluation.stage_plan import check_comparable, evaluation_stages
    from dv2_jax.parallel import distributed
    from dv2_jax.policy import load_policy
    from dv2_jax.recipes.checked_data import CheckedData
    from dv2_jax.recipes.run import write_json
    from dv2_jax.rewards import prepare_rewards
    from dv2_jax.telemetry.progress import Display

    started = time.perf_counter()
    benchmarks = run_benchmarks(config)
    if unknown := set(config.eval.baselines) - set(BASELINES):
        raise ConfigError(f"eval.baselines = {sorted(unknown)}: there are {', '.join(BASELINES)}")
    prepare_rewards(config.reward)
    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    main = distributed.is_main()
    run_dir = Path(config.run.root) / config.run.name
    if (run_dir / "checkpoints").exists():  # its config.json would no longer be that of the checkpoints
        raise ConfigError(f"{run_dir} is a training run: choose another folder with --config.run.name=NAME")
    policy, stages = load_policy(config), evaluation_stages(config)
    check_comparable(policy, stages)
    run_dir.mkdir(parents=True, exist_ok=True)
    display = Display(enabled=main)
    data = CheckedData(config, policy.tokenizer, run_dir, display, is_training=False)
    runs = [BenchmarkRun.load(benchmark, config, data.read) for benchmark in benchmarks]
    if main:
        write_json(run_dir / "config.json", config.to_dict())
        _remove_earlier(run_dir, [*(stage.name for stage in stages), "no_tools"])
    if "guessing" in config.eval.baselines:
        display.line("reading training answers")
        _guess(config, runs)
    results: dict[str, Any] = {
        "model": config.model.init,
        "rows_left_out": data.rows_left_out,
    }
    results |= _answer_all(policy, config, run_dir, stages, runs, display)
    results["seconds"] = round(time.perf_counter() - started, 1)
    if main:
        write_json(run_dir / "results.json", results)
        _print_results(results, runs, run_dir, Console())
    if errors := [part.error for part in runs if part.error]:
        raise RunFailure("; ".join(errors))
    return results


def _guess(config: Config, runs: Sequence[BenchmarkRun]) -> None:
    """Adds the guessing baseline to every benchmark that has training questions.

    Raises:
        ConfigError: none has.
    """
    for part in runs:
        part.guess(config)
    if not any(part.guessing for part in runs):
        names = ", ".join(part.name for part in runs)
        raise ConfigError(f"eval.baselines = guessing: needs training questions, as embedded has; {names} has none")


def _remove_earlier(run_dir: Path, stages: Sequence[str]) -> None:
    """Removes the files that an earlier evaluation of the same name wrote."""
    for name in stages:
        (run_dir / "trajectories" / f"{name}.jsonl").unlink(missing_ok=True)
    for path in [*(run_dir / "trajectories").glob("*@*.jsonl"), *(run_dir / "results").glob("*.json")]:
        path.unlink()


def _answer_all(
    policy: Policy,
    config: Config,
    run_dir: Path,
    stages: Sequence[Stage],
    runs: Sequence[BenchmarkRun],
    display: Display,
) -> dict[str, Any]:
    """Evaluates every policy on every benchmark; returns their entries of `results.json`."""
    from dv2_jax.evaluation.baselines import RefusingTools
    from dv2_jax.evaluation.stage_plan import Stage
    from dv2_jax.parallel import distributed
    from dv2_jax.rollout.session import open_session
    from dv2_jax.telemetry.trajectories import TrajectoryWriter

    with (
        open_session(policy, config, run_dir) as session,
        TrajectoryWriter(run_dir / "trajectories", session.tokenizer, enabled=distributed.is_main()) as writer,
    ):
        done: list[Stage] = []
        for stage in stages:
            display.line(f"loading {stage.init} and compiling")
            session.load_params(stage.init)
            done.append(stage)
            _answer(done, runs, session, writer, display)
        if "no_tools" in config.eval.baselines:
            done.append(Stage("no_tools", "no tools", config.model.init))
            _answer(done, runs, session, writer, display, RefusingTools())
        recompilations = session.recompilations()
    first = _first(runs)
    guessing = {} if first.guessing is None else {"guessing": first.guessing}
    return {
        "questions": len(first.questions),
        "stages": [stage.to_dict() for stage in done],
        **first.summaries,
        "benchmarks": {part.name: part.to_dict() for part in runs},
        "recompilations": recompilations,
        **guessing,
    }


def _first(runs: Sequence[BenchmarkRun]) -> BenchmarkRun:
    """Returns the benchmark whose results have the keys of an evaluation of only one: the embedded tasks, or the first."""
    return next((part for part in runs if part.name == "embedded"), runs[0])


def _answer(
    done: Sequence[Stage],
    runs: Sequence[BenchmarkRun],
    session: RolloutSession,
    writer: TrajectoryWriter,
    display: Display,
    tools: ToolBackend | None = None,
) -> None:
    """Evaluates the last of `done` on every benchmark, and stores trajectories and results of each at once."""
    from dv2_jax.parallel import distributed
    from dv2_jax.recipes.run import write_json
    from dv2_jax.telemetry.stage_titles import benchmark_stage

    stage = done[-1]
    for part in runs:
        trajectories = part.answer(stage, session, display, tools)
        writer.write(trajectories, stage=benchmark_stage(stage.name, part.name, is_first=part is _first(runs)))
        part.aggregate(stage)
        if distributed.is_main():
            path = part.path(writer.directory.parent)
            path.parent.mkdir(exist_ok=True)
            write_json(path, part.file_content(session.config.model.init, [stage.to_dict() for stage in done]))


def _print_results(results: dict, runs: Sequence[BenchmarkRun], run_dir: Path, console: Console) -> None:
    from dv2_jax.evaluation.table import print_comparison, print_scores
    from dv2_jax.report.page import write_report

    for part in runs:
        if part.summaries:
            summary = {"stages": results["stages"], **part.summaries}
            print_comparison(summary, f"{results['model']}, {part.name}, {len(part.questions)} questions", console)
    print_scores(results, console)
    for part in runs:
        if part.guessing is not None:
            shares = ", ".join(f"{skill} {share:.1%}" for skill, share in part.guessing.items())
            console.print(f"{part.name}: always the commonest training answer: {shares}")
    console.print(f"{run_dir / 'results.json'}\n{write_report(run_dir)}", soft_wrap=True)


def _print_list(config: Config) -> None:
    from rich.console import Console

    from dv2_jax.evaluation.benchmarks.listing import benchmark_list

    Console().print(benchmark_list(config))


def main() -> None:
    """Runs `dv2-evaluate`."""
    argv = sys.argv[1:]
    command = _print_list if "--list" in argv else run
    argv = [word for word in argv if word != "--list"]
    run_command(command, argv, command="evaluate", default_config="configs/evaluate.py")


if __name__ == "__main__":
    main()
