"""Checks a data file without starting a run: `python -m dv2_jax.data.check FILE [--config=configs/rl.py:7b] [--json]`.

Decodes every image, checks every field and counts tokens under the limits of a configuration. Exit code 0: the file can
be used; 1: it has faults, or cannot be read; 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dv2_jax.config import Config, ConfigError, load, one_line_errors

if TYPE_CHECKING:
    from dv2_jax.data.faults import DataReport


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments that are not fields of the configuration."""
    result = argparse.ArgumentParser(
        prog="python -m dv2_jax.data.check",
        description="Check every row of a data file and report all faults: file, row, field, problem and fix.",
        epilog="The limits (tokens, images, image sizes) and the tokenizer are those of a configuration: "
        "--config=FILE[:PRESET], by default configs/rl.py or configs/sft.py, and --config.SECTION.FIELD=VALUE. "
        "Exit code 0: usable; 1: faults; 2: wrong command line.",
    )
    result.add_argument("file", help="a .parquet, .jsonl or .json file, or a folder of such files")
    result.add_argument(
        "--kind",
        choices=("rl", "sft"),
        help="RL rows (prompt, reward_model) or SFT rows (messages); by default, what the first row looks like",
    )
    result.add_argument("--json", action="store_true", help="print the result with all faults as one JSON document")
    result.add_argument("--rows", type=int, metavar="N", help="check the first N rows only")
    result.add_argument("--show", type=int, default=10, metavar="N", help="faults to print in full (default 10)")
    result.add_argument("--no-cache", action="store_true", help="check again, also what was checked before")
    return result


def detect_kind(path: str) -> str:
    """Returns `sft` if the first row that can be read has `messages` or `conversations`, else `rl`."""
    from dv2_jax.data.row_files import QUESTION_ENDINGS
    from dv2_jax.data.rows import RowError, iter_source

    try:
        for _, raw in iter_source(path, QUESTION_ENDINGS, limit=100):
            if isinstance(raw.value, dict):
                return "sft" if {"messages", "conversations"} & raw.value.keys() else "rl"
    except RowError:
        pass  # the check reports it
    return "rl"


def check_file(arguments: argparse.Namespace, config: Config, kind: str) -> DataReport:
    """Checks the file and returns the report."""
    from dv2_jax.data.validation import check_source
    from dv2_jax.data.validation_cache import default_cache_folder
    from dv2_jax.rollout.data_checks import conversation_check, load_tokenizer, question_check
    from dv2_jax.telemetry.progress import Display

    tokenizer = load_tokenizer(config)
    check = question_check(config, tokenizer) if kind == "rl" else conversation_check(config, tokenizer)
    with Display(sys.stderr).track(f"checking {arguments.file}", 0, unit="rows") as bar:

        def on_progress(done: int, total: int) -> None:
            bar.set_total(total)
            bar.advance(done - bar.done)

        return check_source(
            arguments.file,
            check,
            limit=arguments.rows,
            cache_folder=None if arguments.no_cache else default_cache_folder(),
            on_progress=on_progress,
        )


def main(argv: list[str] | None = None) -> None:
    """Runs the command; raises SystemExit with its exit code."""
    arguments, rest = parser().parse_known_args(argv)
    with one_line_errors():
        if not Path(arguments.file).exists():
            raise ConfigError(f"{arguments.file}: no such file or folder")
        kind = arguments.kind or detect_kind(arguments.file)
        config = load(rest, command="data.check", default_config=f"configs/{kind}.py")
        report = check_file(arguments, config, kind)
    if arguments.json:
        print(json.dumps(report.to_dict() | {"usable": report.usable}, indent=2))
    else:
        how = "checked before" if report.cached else f"checked in {report.seconds:.1f} s"
        print(f"{report.summary(arguments.show)}\n  {kind} rows, {how}")
    raise SystemExit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
