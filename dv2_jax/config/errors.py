"""Errors whose message is written for the user of a command, and their printing as one line.

A command prints them without a traceback, unless the environment variable `DV2_TRACEBACK` is set to 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRACEBACK_VARIABLE = "DV2_TRACEBACK"


class UserError(Exception):
    """A foreseeable error; the message is a sentence that names the file, row or key, the value and the fix."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration key, value or preset is invalid; the message names it and the fix."""


class RunFailure(UserError, RuntimeError):
    """A run cannot go on because of something outside the program; the message is one sentence that says what."""

    exit_code = 1  # the same command continues the run, in contrast to a command that must be changed


class ServiceOutage(RunFailure):
    """A service that the run needs has given no result for so long that the run must stop."""


def format_error(error: BaseException) -> str:
    """Returns the message of an error; an error of the operating system as `FILE: REASON`."""
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    written_for_users = isinstance(error, (UserError, OSError, ImportError)) and not getattr(error, "strerror", None)
    return message if written_for_users else f"{message} ({TRACEBACK_VARIABLE}=1 shows where)"


@contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """Ends the process with one message instead of a traceback for foreseeable errors.

    Foreseeable are `UserError`, errors of the operating system, missing packages, and the types in `expected`. Any
    other exception is a defect of the program and keeps its traceback. The exit code is 1 for a RunFailure, else 2.
    """
    try:
        yield
    except (UserError, OSError, ImportError, *expected) as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 2)) from None
