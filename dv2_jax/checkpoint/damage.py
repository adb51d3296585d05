"""One-line explanations of damaged checkpoints and failed saves.

Orbax and TensorStore report a truncated file or a full disk with pages of text in which the cause is hard to find. The
complete text goes to a log file next to the checkpoints.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from dv2_jax.config import RunFailure, UserError

LOG = "checkpoint_errors.log"  # file in a run directory
_MAX_CHARS = 300  # of a reason
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large")
_LOCAL_FILE = re.compile(r'"(/[^"]+)": ((?:(?! \[[a-z_]|").)+)')


class CheckpointMismatch(UserError, ValueError):
    """A checkpoint does not fit the model; the message counts the differing parameters and lists the first ones."""


class CheckpointDamaged(UserError, ValueError):
    """A checkpoint cannot be read; the message names its folder and what is wrong with it."""


class SaveFailed(RunFailure):
    """A checkpoint cannot be written; the message gives the reason and the newest checkpoint that is intact."""


def is_news(record: logging.LogRecord) -> bool:
    """A filter for the logger of Orbax: its threads log an exception that `wait` raises again, at any time before that.

    Without the filter, the pages of a failed asynchronous save are printed if the thread logs them between two calls.
    """
    return "_SignalingThread.run() raised an exception" not in record.getMessage()


@contextmanager
def captured_logs() -> Iterator[list[str]]:
    """Collects the log records of Orbax instead of printing them, and exceptions of coroutines that it abandons.

    If the block ends normally, the records are logged after all.
    """
    log = logging.getLogger("absl")
    lines: list[str] = []
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            lines.append(self.format(record))

    handlers, propagate, hook = log.handlers, log.propagate, sys.unraisablehook
    log.handlers, log.propagate = [Collector()], False
    sys.unraisablehook = lambda unraisable: lines.append(f"ignored exception: {unraisable.exc_value!r}")
    try:
        yield lines
    except BaseException:
        log.handlers, log.propagate = handlers, propagate
        raise
    else:
        log.handlers, log.propagate = handlers, propagate
        for record in records:
            log.handle(record)
    finally:
        sys.unraisablehook = hook


def is_mismatch(error: Exception) -> bool:
    """Tests if an exception of Orbax means that the saved tree has other entries than the one to restore."""
    return isinstance(error, ValueError) and "structures do not match" in str(error)


def is_damage(error: Exception) -> bool:
    """Tests if an exception of Orbax means unreadable data, in contrast to a mismatch, a defect or lack of memory."""
    if isinstance(error, UserError) or is_mismatch(error):
        return False
    # Orbax raises a bare Exception for an array that cannot be read.
    return type(error) is Exception or isinstance(error, (OSError, ValueError, KeyError, EOFError))


def explain_damage(checkpoint: str, items: Sequence[str], error: Exception) -> str:
    """Returns the reason why the folder `checkpoint`, which should hold `items`, cannot be read, in a few words."""
    if "://" not in checkpoint:
        folder = Path(checkpoint)
        try:
            if not any(folder.iterdir()):
                return "the folder is empty"
            if missing := [item for item in items if not (folder / item).is_dir()]:
                return f"{', '.join(missing)} is missing"
            for file in (*folder.glob("*/_METADATA"), *folder.glob("extra/metadata")):
                if not _is_json(file):
                    return f"{file.relative_to(folder)} is truncated or no JSON"
        except OSError as problem:
            return f"{problem.filename}: {problem.strerror}"
    text = " ".join(str(part) for part in (error.__cause__, error) if part is not None)
    if found := _LOCAL_FILE.findall(text):
        file, reason = found[-1]
        return _clip(f"{file.removeprefix(checkpoint).lstrip('/')}: {reason.strip()}")
    return _clip(f"{type(error).__name__}: {text}")


def explain_failed_save(error: Exception) -> str:
    """Returns the reason for a failed save in a few words."""
    text = str(error)
    if found := _DISK_FULL.search(text):
        return f"{found[0]} (free space, or raise the quota)"
    if found := _LOCAL_FILE.findall(text):
        return _clip(": ".join(found[-1]))
    return _clip(f"{type(error).__name__}: {text}")


def write_log(store: str, title: str, error: BaseException, lines: Sequence[str]) -> str:
    """Appends an exception and log lines to the log next to the folder `store`; returns a hint at it for the message."""
    if "://" in store:
        return ""
    path = Path(store).parent / LOG
    text = "".join(traceback.format_exception(error))
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {title}\n{text}" + "".join(f"{line}\n" for line in lines))
    except OSError:  # the disk is full, or the run directory is read-only
        return ""
    return f" (details: {path})"


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _clip(text: str) -> str:
    line = " ".join(text.split("[tensorstore_spec=")[0].split())
    return line if len(line) <= _MAX_CHARS else f"{line[:_MAX_CHARS]} …"
