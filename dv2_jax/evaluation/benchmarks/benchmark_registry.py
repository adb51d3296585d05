"""The registry of benchmarks: a configuration names registered ones, a class by its import path, or a file of rows."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Collection
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.config.overrides import suggest
from dv2_jax.config.registry import Registry
from dv2_jax.data.row_files import QUESTION_ENDINGS
from dv2_jax.evaluation.benchmarks.benchmark import JUDGE, Benchmark
from dv2_jax.evaluation.benchmarks.rows_file import RowsFile
from dv2_jax.rollout.question_sources import BUILTIN

KEY = "eval.benchmarks"
BENCHMARKS: Registry[type[Benchmark]] = Registry("benchmark", KEY, package="dv2_jax.evaluation.benchmarks")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def register_benchmark(cls: type[Benchmark]) -> type[Benchmark]:
    """Registers a class of benchmarks under its `name`; a class decorator.

    Raises:
        ValueError: the name is invalid, or another class has that name.
    """
    return BENCHMARKS.register(_check_name(cls))(cls)


def _check_name(cls: type[Benchmark]) -> str:
    name = getattr(cls, "name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{cls.__qualname__}.name = {name!r}: use letters, digits, '.', '_' and '-'")
    return name


def registered_benchmarks() -> list[Benchmark]:
    """Returns one of each registered class."""
    return [BENCHMARKS.get(name)() for name in BENCHMARKS.names()]


def run_benchmarks(config: Config) -> list[Benchmark]:
    """Returns the benchmarks of `eval.benchmarks`, with distinct names.

    Without any, the one that `task` describes: the rows of `task.eval_source` or `task.source`, or the embedded tasks.

    Raises:
        ConfigError: one is unknown, named twice, cannot be imported, or requires what the run does not have.
    """
    found: list[Benchmark] = []
    specs = config.eval.benchmarks
    for index, spec in enumerate(specs):
        if spec in specs[:index]:
            raise ConfigError(f"{KEY}: {spec!r} is named twice")
        found.append(_find(spec, {benchmark.name for benchmark in found}))
    found = found or [_task_benchmark(config)]
    for name in (names := [benchmark.name for benchmark in found]):
        if names.count(name) > 1:
            raise ConfigError(f"{KEY}: two benchmarks have the name {name!r}")
    for benchmark in found:
        _check_requirements(benchmark, config)
    return found


def _task_benchmark(config: Config) -> Benchmark:
    task = config.task
    if task.eval_source:
        return _rows_file(task.eval_source, (), "task.eval_source", task.eval_size)
    if task.source != BUILTIN:
        return _rows_file(task.source, (), "task.source", task.eval_size)
    return BENCHMARKS.get("embedded")()


def _find(spec: str, taken: Collection[str]) -> Benchmark:
    names = BENCHMARKS.names()
    if spec in names:
        return BENCHMARKS.get(spec)()
    if Path(spec).exists():
        return _rows_file(spec, {*taken, *names}, KEY, 0)
    if _IMPORT_PATH.fullmatch(spec):
        return _import(spec)
    if "/" in spec or Path(spec).suffix in QUESTION_ENDINGS:
        raise ConfigError(f"{KEY}: there is no file {spec!r}")
    raise ConfigError(
        f"{KEY}: {spec!r} is none of {', '.join(names)}{suggest(spec, names)};"
        " others are package.module:ClassName, or the path of a parquet, jsonl or json file"
    )


def _import(spec: str) -> Benchmark:
    cls = BENCHMARKS.get(spec)
    if not (inspect.isclass(cls) and issubclass(cls, Benchmark)):
        raise ConfigError(f"{KEY}: {spec!r} is no subclass of dv2_jax.evaluation.benchmarks.benchmark.Benchmark")
    if missing := ", ".join(sorted(cls.__abstractmethods__)):
        raise ConfigError(f"{KEY}: {spec!r} does not implement {missing}")
    try:
        _check_name(cls)
        return cls()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: {spec!r} cannot be used: {error}") from None


def _rows_file(path: str, taken: Collection[str], key: str, size: int) -> RowsFile:
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", Path(path).stem).lstrip("._-") or "rows"
    name = next(n for i in itertools.count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
    return RowsFile(name, path, key, size)


def _check_requirements(benchmark: Benchmark, config: Config) -> None:
    for need in benchmark.requires:
        if need == JUDGE and not config.reward.judge_base_url:
            raise ConfigError(f"{KEY}: {benchmark.name!r} needs a judge: set --config.reward.judge_base_url=URL")
        if need != JUDGE and need not in config.agent.tools:
            raise ConfigError(f"{KEY}: {benchmark.name!r} needs the tool {need!r}: add it to --config.agent.tools")
