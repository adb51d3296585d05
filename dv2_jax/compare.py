"""Compares finished evaluations: `python -m dv2_jax.compare RUN_A RUN_B [RUN_C ...] [--output=compare.html]`.

Every run is compared with the first, on each benchmark that both have: questions that both answer, only one, or neither;
the difference with its 95 % interval; McNemar's test, or one over clusters where questions share images; and the smallest
difference that this number of questions can show. `RUN@NAME` is a policy of a run with several, and RUN_A@x RUN_A@y
compares two of the same run. Files: .html (down to the trajectories of questions that one run answers and the other does
not), .json, .csv. Nothing is answered or scored, and no accelerator is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dv2_jax.config import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `dv2-compare`."""
    parser = argparse.ArgumentParser(prog="python -m dv2_jax.compare", description=__doc__.split("\n\n")[1])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories of evaluations, or RUN@NAME")
    parser.add_argument("--stage", default="", help="name of the policy in every run; default: the one of model.init")
    parser.add_argument("--scorer", default="", help="official or deepeyesv2; default: the first of each run")
    parser.add_argument(
        "--output", action="append", default=[], metavar="FILE", help=".html, .json or .csv; repeatable"
    )
    parser.add_argument(
        "--published", default="", metavar="MODEL", help="also compare with published values, e.g. deepeyesv2-7b"
    )
    with one_line_errors():
        compare(**vars(parser.parse_args(argv)))


def compare(
    runs: Sequence[str], stage: str = "", scorer: str = "", output: Sequence[str] = (), published: str = ""
) -> None:
    """Prints the comparison of runs and writes it to files. A single run can be compared with published values.

    Raises:
        ComparisonError: a run cannot be read, the runs have no benchmark in common, or a file has an unknown ending.
    """
    from rich.console import Console

    from dv2_jax.evaluation.comparison.comparison_page import render_comparison
    from dv2_jax.evaluation.comparison.comparison_table import as_csv, as_json, print_comparisons
    from dv2_jax.evaluation.comparison.paired_runs import compare_runs
    from dv2_jax.evaluation.comparison.published_comparison import compare_published, published_section, published_table
    from dv2_jax.evaluation.comparison.stored_run import ComparisonError, distinct_titles, open_run
    from dv2_jax.evaluation.published import published_values
    from dv2_jax.files import atomic_write

    unknown = [path for path in output if Path(path).suffix not in (".html", ".json", ".csv")]
    if unknown:
        raise ComparisonError(f"--output={unknown[0]}: use a name that ends in .html, .json or .csv")
    if len(runs) < 2 and not published:
        raise ComparisonError("give at least two runs to compare, or one and --published=MODEL")
    opened = distinct_titles([open_run(spec, stage, scorer) for spec in runs])
    comparisons = compare_runs(opened)
    if not comparisons and len(opened) > 1:
        known = "; ".join(f"{run.title}: {', '.join(run.benchmarks)}" for run in opened)
        raise ComparisonError(f"the runs have no benchmark in common ({known})")
    papers = compare_published(opened, published) if published else []
    if published and not papers:
        known = ", ".join(published_values(published))
        raise ComparisonError(f"--published={published}: the runs have none of its benchmarks ({known})")
    console = Console()
    if comparisons:
        print_comparisons(comparisons, opened, console)
    if papers:
        console.print(published_table(papers, published))
    for path in map(Path, output):
        if path.suffix == ".html":
            content = render_comparison(comparisons, opened, published_section(papers, published) if papers else "")
        elif path.suffix == ".json":
            content = as_json(comparisons, opened, papers)
        else:
            content = as_csv(comparisons)
        atomic_write(path, content)
        print(path)


if __name__ == "__main__":
    main()
