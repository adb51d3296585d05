"""Constructs training sets from raw questions: `python -m dv2_jax.curate [--config=configs/curate.py[:PRESET]]`.

The stages of `curate.stages` run in order: rows are read and checked, deduplicated and decontaminated, sampled without and
with tools, solved by teachers, verified by executing every call again, and written as `output/rl.parquet` and
`output/sft.json` with a data card. Each stage appends its labels to a journal in the run directory: the same command
continues an interrupted run, and thresholds can be changed without asking a model again.

`--plan` shows the work of every stage before anything is sent. `--batch-write=FOLDER` writes the next requests that do not
depend on one another as batch files of a provider, and `--batch-read=FILE` stores their results as replies.
`--config.curate.shard=0/4` labels a quarter of the rows; four such processes on one file system label all, and the first of
them then runs the stages that need all rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dv2_jax.config import Config, ConfigError, RunFailure, run_command

if TYPE_CHECKING:
    from dv2_jax.curation.curation import Curation
    from dv2_jax.curation.stage import CurationStage


def run(config: Config) -> dict[str, Any]:
    """Runs all stages and returns the manifest of the written files; empty if another shard writes them.

    Raises:
        ConfigError: a source, stage, teacher or benchmark cannot be used, or the run has labels of other settings.
        RowError: a file cannot be used under `data.bad_rows`.
        RunFailure: the disk is full, the budget is used up, or rows wait for another shard.
        ServiceOutage: an endpoint or the tools service gave no results for too long.
    """
    import json

    from dv2_jax.curation.curation_page import write_page
    from dv2_jax.curation.stages.mix import MANIFEST_FILE, OUTPUT

    with _open(config) as curation:
        for stage in curation.stages:
            if not _run_stage(curation, stage):
                break
        manifest = curation.folder / OUTPUT / MANIFEST_FILE
        if curation.shard.index != 0 or not manifest.exists():
            return {}
        curation.display.line(str(write_page(curation)))
        return json.loads(manifest.read_text())


def _run_stage(curation: Curation, stage: CurationStage) -> bool:
    """Runs a stage if it is this shard's; returns False if later stages need labels that the first shard must write."""
    if stage.is_global and curation.shard.index != 0:
        curation.display.line(f"{stage.name} is run by the first shard")
        return not stage.labels_rows
    if stage.is_global:
        _require_all_shards(curation, stage.name)
    stage.run(curation)
    return True


def _require_all_shards(curation: Curation, stage: str) -> None:
    """Raises RunFailure unless every shard has stored its rows: `stage` compares them."""
    from dv2_jax.curation.stages.read import Read

    unread = [shard for read in curation.stages if isinstance(read, Read) for shard in read.unread_shards(curation)]
    if unread:
        shards = ", ".join(f"{index}/{curation.shard.count}" for index in unread)
        raise RunFailure(f"rows of curate.shard = {shards} wait to be read: run the other shards before {stage}")


def plan(config: Config) -> None:
    """Prints the work of every stage, as far as it is known now: later stages depend on labels of earlier ones."""
    from rich.console import Console
    from rich.table import Table

    with _open(config) as curation:
        table = Table(header_style="bold", caption="rows that stages before it keep now", caption_justify="left")
        for heading in ("stage", "rows", "requests", "tokens", "cost", "note"):
            table.add_column(heading, justify="left" if heading in ("stage", "note") else "right")
        for stage in curation.stages:
            found = stage.plan(curation)
            tokens = "–" if found.tokens is None else f"{found.tokens:,.0f}"
            cost = "–" if found.cost is None else f"{found.cost:,.2f}"
            table.add_row(found.stage, f"{found.rows:,}", f"{found.requests:,}", tokens, cost, found.note)
        Console().print(table)


def write_batch(config: Config, folder: str) -> list[str]:
    """Runs the stages up to the first with single requests that have no reply, and writes these as batch files.

    Raises:
        ConfigError: no stage has such requests now.
    """
    from dv2_jax.curation.batch_files import write_batches
    from dv2_jax.endpoint import ReplyJournal

    with _open(config) as curation:
        for stage in curation.stages:
            with closing(ReplyJournal(curation.reply_path)) as journal:
                written = write_batches(stage.single_requests(curation), Path(folder), stage.name, journal)
            for path, count in written:
                curation.display.line(f"{path}: {count:,} requests")
            if written:
                return [str(path) for path, _ in written]
            if not _run_stage(curation, stage):
                break
    raise ConfigError("--batch-write: no stage of curate.stages has rows that wait for single requests")


def read_batch(config: Config, file: str) -> None:
    """Stores the replies of a batch's result file; the next run of the stage uses them."""
    from dv2_jax.curation.batch_files import read_results
    from dv2_jax.endpoint import ReplyJournal

    with _open(config) as curation:
        with closing(ReplyJournal(curation.reply_path)) as journal:
            result = read_results(Path(file), journal)
        reasons = "".join(f"; {count:,} failed ({reason})" for reason, count in result.failures.most_common(5))
        curation.display.line(f"{file}: {result.stored:,} replies stored, {result.known:,} known{reasons}")


def _open(config: Config) -> Curation:
    from dv2_jax.curation.curation import Curation
    from dv2_jax.rewards import prepare_rewards
    from dv2_jax.telemetry.progress import Display

    folder = Path(config.run.root) / config.run.name
    prepare_rewards(config.reward)
    return Curation.open(config, folder, Display())


def main() -> None:
    """Runs `dv2-curate`."""
    options, rest = [], []
    for word in sys.argv[1:]:
        (options if word.partition("=")[0] in ("--plan", "--batch-write", "--batch-read") else rest).append(word)
    if len(options) > 1:
        raise SystemExit(f"{' and '.join(options)} exclude one another")
    name, _, value = "".join(options).partition("=")
    if name.startswith("--batch") and not value:
        raise SystemExit(f"{name} needs a path: {name}=PATH")
    commands: dict[str, Callable[[Config], object]] = {
        "": run,
        "--plan": plan,
        "--batch-write": lambda config: write_batch(config, value),
        "--batch-read": lambda config: read_batch(config, value),
    }
    run_command(commands[name], rest, command="curate", default_config="configs/curate.py")


if __name__ == "__main__":
    main()
