"""The table that `python -m dv2_jax.evaluate --list` prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import AgentConfig, Config
from dv2_jax.evaluation.benchmarks.benchmark import JUDGE, Benchmark
from dv2_jax.evaluation.benchmarks.benchmark_registry import registered_benchmarks, run_benchmarks
from dv2_jax.evaluation.readers.file_rows import count_rows
from dv2_jax.evaluation.readers.locate import data_folder, present_files

_ABSENT = "–"
SEARCHES = "searches"  # both


def benchmark_list(config: Config) -> Group:
    """Returns a table of the registered benchmarks and of those that `config` names, which are marked with `*`.

    Raises:
        ConfigError: as `run_benchmarks`.
        RowError: the rows of a file cannot be counted.
    """
    own = {benchmark.name: benchmark for benchmark in run_benchmarks(config)}
    table = Table(header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("name", no_wrap=True)
    for heading in ("source", "rows", "needs", "file"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for name, benchmark in ({benchmark.name: benchmark for benchmark in registered_benchmarks()} | own).items():
        rows, file = _found(benchmark, config)
        if benchmark.published_rows is not None:
            rows += f" of {benchmark.published_rows:,}"
        cells = benchmark.source or _ABSENT, rows, _needs(benchmark) or _ABSENT, file
        table.add_row("*" if name in own else "", name, *cells)
    folder = data_folder(config)
    state = "" if folder.is_dir() else ", which does not exist"
    notes = (
        "* evaluated under this configuration. Rows: in the file that was found, of the published ones.\n"
        "searches: the tools of text and image search. judge: decides what rules do not; without one (reward.judge_base_url) those answers are failed.\n"
        f"Files are looked for in {folder}{state} (eval.data, or else $LMUData, or else ~/LMUData)."
    )
    return Group(table, Text(notes))


def _found(benchmark: Benchmark, config: Config) -> tuple[str, str]:
    """Returns the number of rows and the names of the files of a benchmark."""
    files = present_files(config, benchmark.files) if benchmark.files else []
    rows = benchmark.row_count(config)
    if rows is None and files:
        counts = [count_rows(path) for path in files]
        rows = None if None in counts else sum(count or 0 for count in counts)
    if not benchmark.files:
        return "?" if rows is None else f"{rows:,}", _ABSENT
    if not files:
        return _ABSENT, f"no {benchmark.files[0]}"
    return "?" if rows is None else f"{rows:,}", _file_names(files, data_folder(config))


def _file_names(files: list[Path], folder: Path) -> str:
    size = sum(path.stat().st_size for path in files)
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    amount = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
    return f"{files[0].relative_to(folder)}{more}, {amount}"


def _needs(benchmark: Benchmark) -> str:
    """Returns the tools other than code that the protocol has, and the judge."""
    names = [tool for tool in benchmark.requires if tool != JUDGE]
    if benchmark.tools is not None:
        tools = run_tools(replace(AgentConfig(), tools=benchmark.tools))
        searches = [tool.name for tool in tools if tool.is_search]
        names = [*(name for name in names if name not in searches), *([SEARCHES] if len(searches) > 1 else searches)]
    if JUDGE in benchmark.requires or benchmark.uses_judge:
        names.append(JUDGE)
    return ", ".join(names)
