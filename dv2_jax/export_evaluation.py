"""Exports an evaluation: `python -m dv2_jax.export_evaluation RUN --format=inspect|every_eval_ever|vlmevalkit --output=FOLDER`.

Reads the records of a run directory, of any version; nothing is inferred or scored again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dv2_jax.config import ConfigError, one_line_errors


def run(
    run_dir: str | Path, format_name: str, output: str | Path, with_images: bool = False, data: str = ""
) -> list[Path]:
    """Writes the export and returns the paths of its files.

    Raises:
        ConfigError: the format is unknown, or the run has no records of answers.
    """
    from dv2_jax.evaluation.exports.export_format import EXPORT_FORMATS, ExportOptions
    from dv2_jax.evaluation.exports.exported_run import ExportedRun

    names = sorted(EXPORT_FORMATS.names())
    if format_name not in names:
        raise ConfigError(f"--format={format_name}: there are {', '.join(names)}")
    exported = ExportedRun.read(run_dir)
    return EXPORT_FORMATS.get(format_name)().write(exported, Path(output), ExportOptions(with_images, data))


def main(argv: list[str] | None = None) -> None:
    """Runs `dv2-export-evaluation`."""
    parser = argparse.ArgumentParser(
        prog="python -m dv2_jax.export_evaluation", description="Export the answers and scores of an evaluation."
    )
    parser.add_argument("run_dir", help="a run directory, e.g. runs/evaluate")
    parser.add_argument("--format", required=True, help="inspect | every_eval_ever | vlmevalkit")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--images", action="store_true", help="embed the images (inspect); otherwise their names")
    parser.add_argument(
        "--data", default="", help="folder of the benchmark files (vlmevalkit); by default that of the run"
    )
    arguments = parser.parse_args(argv)
    with one_line_errors():
        paths = run(arguments.run_dir, arguments.format, arguments.output, arguments.images, arguments.data)
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
