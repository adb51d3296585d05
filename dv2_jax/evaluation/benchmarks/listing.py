"""The table that `python -m dv2_jax.evaluate --list` prints."""

from __future__ import annotations

from rich.table import Table

from dv2_jax.config import Config
from dv2_jax.evaluation.benchmarks.benchmark_registry import registered_benchmarks, run_benchmarks


def benchmark_list(config: Config) -> Table:
    """Returns a table of the registered benchmarks and of those that `config` names, which are marked with `*`.

    Raises:
        ConfigError: as `run_benchmarks`.
        RowError: the rows of a file cannot be counted.
    """
    own = {benchmark.name: benchmark for benchmark in run_benchmarks(config)}
    table = Table(header_style="bold", caption="* evaluated under this configuration", caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("name", "source", "rows", "requires"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for name, benchmark in ({benchmark.name: benchmark for benchmark in registered_benchmarks()} | own).items():
        rows = benchmark.row_count(config)
        cells = benchmark.source or "–", "?" if rows is None else f"{rows:,}", ", ".join(benchmark.requires) or "–"
        table.add_row("*" if name in own else "", name, *cells)
    return table
