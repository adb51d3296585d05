"""`python -m dv2_jax.report RUN` writes the report page of a run, with the analysis of its use of tools."""

from __future__ import annotations

import argparse

from dv2_jax.config import one_line_errors
from dv2_jax.evaluation.analysis.run_analysis import analyze_run


def main(argv: list[str] | None = None) -> None:
    """Runs `dv2-report`."""
    parser = argparse.ArgumentParser(prog="python -m dv2_jax.report", description=__doc__)
    parser.add_argument("run_dir", help="a run directory, e.g. runs/default")
    parser.add_argument("--figures", action="store_true", help="also write report/figures/*.png and *.csv")
    parser.add_argument(
        "--no-tools",
        metavar="OTHER_RUN",
        help="a run of the same questions without tools, for the benefit of tools; by default the run's own answers"
        " without tools, from --config.eval.baselines=no_tools or --config.eval.tool_sets=protocol,none",
    )
    arguments = parser.parse_args(argv)
    with one_line_errors():
        analysis = analyze_run(arguments.run_dir, arguments.no_tools)
        print(analysis.write_page())
        if arguments.figures:
            print(*(analysis.write_figures() or ["no figures: the run has no records of tool use"]), sep="\n")


if __name__ == "__main__":
    main()
