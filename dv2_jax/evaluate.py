"""Evaluates a policy: `python -m dv2_jax.evaluate [--config=configs/evaluate.py[:PRESET]] [--config.model.init=…]`.

Answers the questions of one or more benchmarks with tools, scores the answers, and prints scores and tool use. Answers and
scores are stored as they are obtained (`trajectories/`, `scores/`): the same command continues an interrupted run with
what is missing. Writes `results.json`, `results/`, `report/index.html` and `report/figures/` into the run directory. On several hosts, start
the same command on every host: each answers its shard, and process 0 writes the results of all.

`--list` shows the benchmarks and `--plan` what a run would do; `--rejudge` scores stored answers again, without inference;
`--retry-failed` grants failed answers one more attempt. `--config.eval.benchmarks=embedded,path/to/rows.jsonl,pkg.module:Class`
chooses benchmarks, `--config.eval.baselines=guessing,no_tools` adds baselines, and
`--config.eval.endpoint=http://host:8000/v1` evaluates a model behind a chat endpoint instead of `model.init`.
`--config.eval.compare=package:base,checkpoint:runs/sft` evaluates further policies on the same questions, for one table:
`--config=configs/paper_stages.py` does so for the paper's stages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dv2_jax.config import Config, ConfigError, RunFailure, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from dv2_jax.data.tokenizer import Tokenizer
    from dv2_jax.evaluation.answerers.answerer import Answerer
    from dv2_jax.evaluation.benchmark_run import BenchmarkRun
    from dv2_jax.evaluation.evaluator import Evaluator
    from dv2_jax.evaluation.run_budget import Budget
    from dv2_jax.evaluation.run_services import RunServices
    from dv2_jax.evaluation.stage_run import StageRun
    from dv2_jax.rollout.scheduler import ToolBackend
    from dv2_jax.rollout.session import RolloutSession

FLAGS = ("--list", "--plan", "--rejudge", "--retry-failed")


def run(config: Config, *, rejudge: bool = False, retry_failed: bool = False) -> dict:
    """Evaluates `config.model` and returns the content of `results.json`.

    Args:
        rejudge: score the stored answers again, and answer nothing: no engine and no tools service start.
        retry_failed: one more attempt for answers that have failed `eval.attempts` times.

    Raises:
        ConfigError: a benchmark, scorer or baseline is unknown or cannot be used, the judge cannot be used, or the run
            directory holds answers under another configuration.
        RowError: a data file cannot be used under `data.bad_rows`.
        RunFailure: the code of a benchmark cannot aggregate its scores, too many answers failed, or a limit was reached;
            all results have been written.
        ServiceOutage: a service gave no results for too long, or a record cannot be written.
    """
    from rich.console import Console

    from dv2_jax.evaluation.run_budget import Budget
    from dv2_jax.evaluation.run_services import RunServices
    from dv2_jax.parallel import distributed
    from dv2_jax.recipes.run import write_json
    from dv2_jax.rewards import prepare_rewards
    from dv2_jax.telemetry.interrupt import Interrupt

    started = time.perf_counter()
    _check(config)
    prepare_rewards(config.reward)
    with Interrupt() as interrupt, ExitStack() as stack:
        services = stack.enter_context(RunServices(config, answers=not rejudge))
        evaluator, rows_left_out = _open(config, Budget.of_run(config, interrupt), services)
        evaluator.make_judge = services.judge(evaluator.run_dir)
        main = distributed.is_main()
        evaluator.prepare(retry_failed=retry_failed, any_weights=rejudge)
        if main:
            write_json(evaluator.run_dir / "config.json", config.to_dict())
        if "guessing" in config.eval.baselines:
            evaluator.display.line("reading training answers")
            _guess(config, evaluator.parts)
        recompilations = _evaluate(evaluator, services, rejudge=rejudge)
    results: dict[str, Any] = {
        "model": services.model or config.model.init,
        "rows_left_out": rows_left_out,
        **evaluator.results(),
    }
    results["recompilations"] = recompilations
    results["seconds"] = round(time.perf_counter() - started, 1)
    stopped = evaluator.budget.reason
    if main:
        write_json(evaluator.run_dir / "results.json", results | ({"stopped": stopped} if stopped else {}))
        _print_results(results, evaluator, Console())
    errors = [part.error for part in evaluator.parts if part.error]
    if errors := [*errors, *evaluator.failed_too_often(), *([stopped] if stopped else [])]:
        raise RunFailure("; ".join(errors))
    return results


def plan(config: Config) -> None:
    """Prints what a run under this configuration would do, from the stored records; starts nothing.

    Raises:
        ConfigError: as `run`.
    """
    from rich.console import Console

    from dv2_jax.evaluation.evaluation_plan import plan_table
    from dv2_jax.evaluation.run_budget import Budget
    from dv2_jax.evaluation.run_services import RunServices

    _check(config)
    evaluator, _ = _open(config, Budget.of_run(config), RunServices(config, answers=False), read_only=True)
    evaluator.prepare()
    Console().print(plan_table(evaluator))


def _check(config: Config) -> None:
    """Checks the settings of the evaluation, before anything is loaded. Raises ConfigError."""
    from dv2_jax.evaluation.scoring import check_scorers

    check_scorers(config)
    settings = config.eval
    if settings.samples < 1 or settings.attempts < 1:
        raise ConfigError(f"eval.samples = {settings.samples} and eval.attempts = {settings.attempts}: at least 1 each")
    if settings.samples > 1 and not settings.temperature > 0:
        raise ConfigError(
            f"eval.samples = {settings.samples}, but greedy answers are all alike: set --config.eval.temperature=1"
        )


def _open(config: Config, budget: Budget, services: RunServices, *, read_only: bool = False) -> tuple[Evaluator, int]:
    """Loads the benchmarks; returns the evaluator and the number of rows left out. Nothing is answered yet. Collective."""
    from dv2_jax.checkpoint.policy_spec import weights_fingerprint
    from dv2_jax.data.tokenizer import Tokenizer
    from dv2_jax.evaluation.benchmark_run import BenchmarkRun
    from dv2_jax.evaluation.benchmarks.benchmark_registry import run_benchmarks
    from dv2_jax.evaluation.evaluator import Evaluator
    from dv2_jax.evaluation.human_labels import check_labels, read_labels
    from dv2_jax.evaluation.run_check import check_run_folder, remove_records
    from dv2_jax.evaluation.stage_plan import evaluation_stages
    from dv2_jax.parallel import distributed
    from dv2_jax.recipes.checked_data import CheckedData
    from dv2_jax.telemetry.progress import Display

    benchmarks = run_benchmarks(config)
    labels = read_labels(config.eval.human_labels) if config.eval.human_labels else []
    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    run_dir = Path(config.run.root) / config.run.name
    check_run_folder(run_dir, config)
    stages = evaluation_stages(config, services.model)
    services.check_prices([stage.init for stage in stages])
    weights: dict[str, str] = {}
    if services.model:
        tokenizer = Tokenizer.from_package()  # checks the rows of data files; the endpoint has its own
    else:
        tokenizer = _tokenizer(config)
        weights = {
            init: weights_fingerprint(replace(config.model, init=init), config.run.seed)
            for init in dict.fromkeys(stage.init for stage in stages)
        }
    run_dir.mkdir(parents=True, exist_ok=True)
    display = Display(enabled=distributed.is_main())
    data = CheckedData(config, tokenizer, run_dir, display, is_training=False)
    parts = [BenchmarkRun.load(benchmark, config, data.read) for benchmark in benchmarks]
    if not config.run.resume and not read_only:
        if distributed.is_main():
            remove_records(run_dir)
        distributed.barrier("earlier records are removed")
    for line in check_labels(labels, [part.name for part in parts]):
        display.line(line)
    evaluator = Evaluator(
        config, run_dir, stages, parts, tokenizer, display, budget, weights, services.price, labels=labels
    )
    return evaluator, data.rows_left_out


def _tokenizer(config: Config) -> Tokenizer:
    """Returns the tokenizer of `model.init`. Raises ConfigError if it has none."""
    from dv2_jax.checkpoint.policy_spec import load_policy_spec
    from dv2_jax.data.tokenizer import Tokenizer

    spec = load_policy_spec(config.model)
    if spec.tokenizer_file is None:
        raise ConfigError(
            f"model.init = {config.model.init!r} has no tokenizer: use hf:/path, checkpoint:/path or a package model"
        )
    return Tokenizer.from_file(spec.tokenizer_file)


def _guess(config: Config, parts: Sequence[BenchmarkRun]) -> None:
    """Adds the guessing baseline to every benchmark that has training questions.

    Raises:
        ConfigError: none has.
    """
    for part in parts:
        part.guess(config)
    if not any(part.guessing for part in parts):
        names = ", ".join(part.name for part in parts)
        raise ConfigError(f"eval.baselines = guessing: needs training questions, as embedded has; {names} has none")


def _evaluate(evaluator: Evaluator, services: RunServices, *, rejudge: bool) -> int:
    """Obtains what is missing; returns the number of programs compiled after the warm-up. Collective."""
    if rejudge or evaluator.is_complete():
        evaluator.evaluate(rejudge=rejudge)
        return 0
    if services.model:
        evaluator.evaluate(services.answerer)
        return 0
    with ExitStack() as stack:
        engines = _Engines(evaluator, stack)
        evaluator.evaluate(engines.answerer)
        return engines.recompilations()


class _Engines:
    """Opens the engine for the first stage with something to answer, and loads the weights of each policy once."""

    def __init__(self, evaluator: Evaluator, stack: ExitStack):
        self._evaluator, self._stack = evaluator, stack
        self._session: RolloutSession | None = None
        self._tools: ToolBackend | None = None
        self._loaded = ""

    def answerer(self, run: StageRun) -> Answerer:
        """Returns the answerer of a stage. Collective."""
        from dv2_jax.evaluation.answerers.own_engine import OwnEngine
        from dv2_jax.evaluation.baselines import RefusingTools
        from dv2_jax.evaluation.recorded_searches import REPLAY, ReplayedAnswers

        config, session = self._evaluator.config, self._session or self._open()
        if run.stage.init != self._loaded:
            self._evaluator.display.line(f"loading {run.stage.init} and compiling")
            session.load_params(run.stage.init)
            self._loaded = run.stage.init
        tools = RefusingTools() if run.stage.refuses_tools else self._tools
        engine = OwnEngine(session.scheduler(temperature=config.eval.temperature, tools=tools, agent=run.agent))
        return ReplayedAnswers(engine) if config.eval.search_record == REPLAY else engine

    def _open(self) -> RolloutSession:
        from dv2_jax.evaluation.recorded_searches import RecordedSearches, open_search_records, with_records
        from dv2_jax.evaluation.stage_plan import check_comparable
        from dv2_jax.evaluation.tool_sets import all_tools
        from dv2_jax.policy import load_policy
        from dv2_jax.rollout.session import open_session

        evaluator = self._evaluator
        config = evaluator.config
        records = open_search_records(config, evaluator.run_dir, [part.questions for part in evaluator.parts])
        tools = all_tools(config, [part.benchmark for part in evaluator.parts])
        config = replace(config, agent=replace(config.agent, tools=tools))  # generation stops at the tags of all
        policy = load_policy(config)
        check_comparable(policy, evaluator.stages)
        self._session = self._stack.enter_context(open_session(policy, config, evaluator.run_dir))
        self._tools = with_records(self._session.tools, records, config.eval.search_record)
        if isinstance(self._tools, RecordedSearches):
            self._stack.callback(lambda tools: evaluator.display.line(tools.summary()), self._tools)
        return self._session

    def recompilations(self) -> int:
        """Returns the number of programs that the engine compiled after its warm-up."""
        return 0 if self._session is None else self._session.recompilations()


def _print_results(results: dict, evaluator: Evaluator, console: Console) -> None:
    from dv2_jax.evaluation.analysis.run_analysis import analyze_run
    from dv2_jax.evaluation.table import print_comparison, print_scores

    for part in evaluator.parts:
        if part.summaries:
            summary = {"stages": results["stages"], **part.summaries}
            print_comparison(summary, f"{results['model']}, {part.name}, {len(part.ids)} questions", console)
    print_scores(results, console)
    for part in evaluator.parts:
        if part.guessing is not None:
            shares = ", ".join(f"{skill} {share:.1%}" for skill, share in part.guessing.items())
            console.print(f"{part.name}: always the commonest training answer: {shares}")
    run_dir = evaluator.run_dir
    analysis = analyze_run(run_dir)
    analysis.write_figures()
    console.print(f"{run_dir / 'results.json'}\n{analysis.write_page()}", soft_wrap=True)


def _print_list(config: Config) -> None:
    from rich.console import Console

    from dv2_jax.evaluation.benchmarks.listing import benchmark_list

    Console().print(benchmark_list(config))


def main() -> None:
    """Runs `dv2-evaluate`."""
    argv = sys.argv[1:]
    flags = {word for word in argv if word in FLAGS}
    command = partial(run, rejudge="--rejudge" in flags, retry_failed="--retry-failed" in flags)
    for flag, other in (("--list", _print_list), ("--plan", plan)):
        if flag in flags:
            command = other
    argv = [word for word in argv if word not in FLAGS]
    run_command(command, argv, command="evaluate", default_config="configs/evaluate.py")


if __name__ == "__main__":
    main()
