"""The analysis of a run: tables, sections of the report page, and files of figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dv2_jax.evaluation.analysis import analysis_page as page
from dv2_jax.evaluation.analysis import figure_tables as tables
from dv2_jax.evaluation.analysis.answer_rows import AnalyzedRun, read_run
from dv2_jax.evaluation.analysis.figure_files import write_csv, write_png
from dv2_jax.evaluation.analysis.tool_benefit import ToolBenefit, benefit_table, benefits
from dv2_jax.report.page import write_report

NO_RECORDS = (
    "This run has no records of answers (no trajectories/*.jsonl), so that its use of tools cannot be analyzed."
)


@dataclass(frozen=True)
class RunAnalysis:
    """A run and the benefit of its tools."""

    run: AnalyzedRun
    benefits: Sequence[ToolBenefit]

    def figures(self) -> list[tables.FigureTable]:
        """Returns the tables of all figures; one without data has no rows."""
        run = self.run
        return [
            tables.tool_kinds_table(run),
            tables.tool_rate_table(run),
            tables.step_table(run),
            tables.step_kinds_table(run),
            tables.error_table(run),
            benefit_table(self.benefits),
        ]

    def sections(self) -> str:
        """Renders the sections of the report page."""
        if not self.run.rows:
            return f'<h2>Use of tools</h2><p class="hint">{escape(NO_RECORDS)}</p>'
        kinds, rates, steps, step_kinds, errors, benefit = self.figures()
        missing = {
            (benchmark, self.run.title(stage)): tables.outcome_counts(rows)
            for (benchmark, stage), rows in self.run.evaluations().items()
        }
        samples = min((result.samples[1] for result in self.benefits), default=1)
        return "".join(
            (
                page.tool_kinds_section(kinds, self.run.kind_titles),
                page.tool_rate_section(rates),
                page.steps_section(steps),
                page.step_kinds_section(step_kinds),
                page.benefit_section(benefit, samples),
                page.error_section(errors, missing),
            )
        )

    def write_page(self) -> Path:
        """Writes the report page with these sections, and returns its path."""
        has_figure_6 = bool(self.figures()[0].rows)  # replaces the section on the distribution of tool uses
        return write_report(self.run.directory, self.sections(), with_mix=not has_figure_6)

    def write_figures(self) -> list[Path]:
        """Writes CSV and PNG files into `report/figures`, and returns their paths."""
        folder, found = self.run.directory / "report" / "figures", self.figures()
        return [*write_csv(folder, [*found, tables.error_cases_table(self.run)]), *write_png(folder, found)]


def analyze_run(run_dir: str | Path, no_tools: str | Path | None = None) -> RunAnalysis:
    """Analyzes a run directory of any version.

    Args:
        no_tools: a run of the same questions without tools; None: the run's own policies without tools.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    run = read_run(run_dir)
    return RunAnalysis(run, benefits(run, None if no_tools is None else read_run(no_tools)))
