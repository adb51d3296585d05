"""Data files of a run: checked completely before anything else starts, then read without their bad rows.

Every host checks its own copy. Hosts agree on the result before any of them acts on it, so that all stop, or all leave
out the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.config.resume import IMAGES, INPUTS_FILE, read_stored
from dv2_jax.data.faults import DataReport, Fault, RowError
from dv2_jax.data.question import Question
from dv2_jax.data.rows import Conversation, read_conversations, read_questions
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.data.validation import RecordCheck, check_source
from dv2_jax.data.validation_cache import default_cache_folder
from dv2_jax.parallel import distributed
from dv2_jax.recipes.run import Interrupted, Run, write_json
from dv2_jax.rollout.data_checks import conversation_check, question_check
from dv2_jax.rollout.question_sources import BUILTIN, check_exists
from dv2_jax.telemetry.progress import Display

FAULTS_FILE = "data_faults.jsonl"  # in the run directory: every fault, one per line


class CheckedData:
    """Checks and reads the data files of one run.

    `data.bad_rows` decides what a row with faults does; `data_faults.jsonl` in the run directory lists all of them.
    Training leaves out rows that are too long; an evaluation keeps them, and they are answered wrongly.

    Args:
        is_training: `task.source` holds questions to train on.
        is_interrupted: polled during a check; True raises Interrupted on every host.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        directory: Path,
        display: Display,
        *,
        is_training: bool = True,
        is_interrupted: Callable[[], bool] = lambda: False,
    ):
        self.config, self.tokenizer, self.directory, self.display = config, tokenizer, directory, display
        self.is_training, self._is_interrupted = is_training, is_interrupted
        self.rows_left_out = 0
        self._reports: dict[tuple[str, int], DataReport] = {}
        self._questions: dict[tuple[str, int], list[Question]] = {}

    @classmethod
    def of_run(cls, run: Run, tokenizer: Tokenizer) -> CheckedData:
        """Check the data files of an open run; Ctrl-C ends a check."""
        return cls(
            run.config, tokenizer, run.directory, run.display, is_interrupted=lambda: bool(run.interrupt.requested)
        )

    def check_tasks(self) -> None:
        """Check the files of `config.task`, before anything is loaded. Collective.

        Raises:
            ConfigError: a file does not exist.
            RowError: a file cannot be used under `data.bad_rows`.
            Interrupted: a signal arrived.
        """
        task = self.config.task
        if task.source != BUILTIN:
            self.read("task.source", task.source)
        if task.eval_source:
            self.read("task.eval_source", task.eval_source, task.eval_size)

    def read(self, key: str, path: str, size: int = 0) -> list[Question]:
        """Check and read the questions of a file, once: its first `size` rows, 0 for all. Collective."""
        if (path, size) not in self._questions:
            check_exists(key, path)
            keep_long = not self.is_training or key == "task.eval_source"
            check = question_check(self.config, self.tokenizer)
            report = self._check(key, path, check, size, keep_long=keep_long)
            failed: list[Fault] = []
            skip = report.bad_rows if keep_long else report.bad_rows | report.long_rows
            records = list(read_questions(path, skip=skip, limit=size or None, on_fault=failed.append))
            self._questions[path, size] = self._agree_on_records(records, failed)
        return self._questions[path, size]

    def read_conversations(self, path: str) -> list[Conversation]:
        """Check and read the conversations of a file. Collective."""
        if not Path(path).exists():
            raise ConfigError(f"sft.data = {path!r}: use cold_start, pretrain, or the path of a json or jsonl file")
        check = conversation_check(self.config, self.tokenizer)
        report = self._check("sft.data", path, check, 0, keep_long=False)
        failed: list[Fault] = []
        skip = report.bad_rows | report.long_rows
        records = list(read_conversations(path, skip=skip, on_fault=failed.append))
        return self._agree_on_records(records, failed)

    def _check(self, key: str, path: str, check: RecordCheck, size: int, *, keep_long: bool) -> DataReport:
        report, error = None, None
        try:
            report = self._check_here(path, check, size)
        except (RowError, OSError, ImportError) as failure:
            error = str(failure)
        except Interrupted:
            error = "interrupted"
        found = [error, *_outcome(report)]
        everywhere = distributed.allgather_json(found)
        errors = [outcome[0] for outcome in everywhere if outcome[0]]
        if "interrupted" in errors:
            raise Interrupted
        if errors:
            raise RowError(errors[0])
        if any(outcome != everywhere[0] for outcome in everywhere):
            rows = ", ".join(f"host {host}: {rows:,} rows, {faults:,} faults" for host, (_, rows, faults, *_) in
                             enumerate(everywhere))  # fmt: skip
            raise RowError(f"{path} differs between hosts ({rows}): give every host the same file and images")
        self._reports[path, size] = report
        self._write_faults()
        self._apply_policy(report, keep_long=keep_long)
        self._compare_images(key, path, report)
        return report

    def _check_here(self, path: str, check: RecordCheck, size: int) -> DataReport:
        with self.display.track(f"checking {path}", 0, unit="rows") as bar:

            def on_progress(done: int, total: int) -> None:
                bar.set_total(total)
                bar.advance(done - bar.done)
                if self._is_interrupted():
                    raise Interrupted

            return check_source(
                path, check, limit=size or None, cache_folder=default_cache_folder(), on_progress=on_progress
            )

    def _apply_policy(self, report: DataReport, *, keep_long: bool) -> None:
        """Say what was found.

        Raises:
            RowError: the file cannot be used under `data.bad_rows`.
        """
        policy, every = self.config.data, f"all faults: {self.directory / FAULTS_FILE}"
        bad = len(report.bad_rows)
        fraction = bad / max(1, report.rows)
        if report.file_faults:
            raise RowError(f"{report.summary()}\na file that cannot be read to its end is never used; {every}")
        if not report.usable:
            raise RowError(f"{report.summary()}\nno row of {report.path} can be used; {every}")
        if bad and policy.bad_rows == "error":
            raise RowError(
                f"{report.summary()}\nfix these rows, or leave them out with --config.data.bad_rows=skip; {every}"
            )
        if fraction > policy.max_bad_fraction:
            raise RowError(
                f"{report.summary()}\n{fraction:.1%} of the rows have faults, more than data.max_bad_fraction ="
                f" {policy.max_bad_fraction:.1%}: fix them, or raise it; {every}"
            )
        how = "checked before" if report.cached else f"checked in {report.seconds:.1f} s"
        self.display.line(f"{report.summary()}\n  {how}" if report.faults else f"{report.summary()}, {how}")
        if bad:
            self.display.line(f"left out: {count_rows(bad)} with faults ({fraction:.1%}) of {report.path}; {every}")
        if report.long_rows:
            what = "kept, as wrong answers" if keep_long else "left out"
            self.display.line(f"{what}: {count_rows(len(report.long_rows))} of {report.path}, too long")
        self.rows_left_out += bad + (0 if keep_long else len(report.long_rows))

    def _compare_images(self, key: str, path: str, report: DataReport) -> None:
        """Compare the images of a data file with those that the run in the directory was started with. Collective.

        Raises:
            ConfigError: they are others.
        """
        error = ""
        inputs_file = self.directory / INPUTS_FILE
        if self.is_training and distributed.is_main() and inputs_file.exists():
            inputs = read_stored(inputs_file)
            known = inputs.get(key, {}).get(IMAGES)
            if known is not None and known != report.images_sha256:
                error = (
                    f"{key} = {path!r}: its image files are not those that the run in {self.directory} was started"
                    " with; put those back, or choose another run with --config.run.name=NAME"
                )
            elif known is None and key in inputs:
                inputs[key][IMAGES] = report.images_sha256
                write_json(inputs_file, inputs)
        if error := distributed.broadcast_from_main(error):
            raise ConfigError(error)

    def _agree_on_records(self, records: list, failed: list[Fault]) -> list:
        """Leave out, on every host, the rows that some host could no longer read. Collective."""
        lost: dict[str, str] = {}
        for faults in distributed.allgather_json([[f"{Path(f.file).stem}:{f.row}", str(f)] for f in failed]):
            lost.update(map(tuple, faults))
        for message in lost.values():
            self.display.line(f"left out, although it passed the check: {message}")
        self.rows_left_out += len(lost)
        return [record for record in records if record.id not in lost]

    def _write_faults(self) -> None:
        faults = [asdict(fault) for report in self._reports.values() for fault in report.faults]
        path = self.directory / FAULTS_FILE
        if not distributed.is_main():
            return
        if not faults:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(fault) + "\n" for fault in faults), encoding="utf-8")


def count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _outcome(report: DataReport | None) -> list:
    """Return (rows, faults, digest of the faults, digest of the images) of a report."""
    if report is None:
        return [0, 0, "", ""]
    keys = sorted([Path(f.file).name, -1 if f.row is None else f.row, f.field, f.kind] for f in report.faults)
    faults = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
    return [report.rows, len(report.faults), faults, report.images_sha256]
