"""Formats tracebacks and warnings of a cell without naming the sandbox's own source files. Runs inside a session."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TextIO

_SANDBOX_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MAX_CAUSES = 100
# Matplotlib warns once per character, and versions before 3.11 also once per script.
_MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from|Matplotlib currently does not support \w+ natively")
# Python 3.12 and newer append suggestions to some messages.
_SUGGESTION = re.compile(
    r"^((?:NameError|AttributeError|ImportError): .*?)\. Did you (?:mean: |forget to import )'.*'\??$", re.MULTILINE
)


def format_traceback(error: BaseException) -> str:
    """Returns the traceback of `error` and of its causes without frames of the sandbox.

    Suggestions such as "Did you mean: 'display'?" are left out, so that a policy reads the same text on every version of
    Python.
    """
    try:
        formatted = traceback.TracebackException(type(error), error, error.__traceback__)
        current_exception: traceback.TracebackException | None = formatted
        for _ in range(_MAX_CAUSES):
            if current_exception is None:
                break
            current_exception.stack = traceback.StackSummary.from_list(
                [frame for frame in current_exception.stack if not frame.filename.startswith(_SANDBOX_FOLDER)]
            )
            current_exception = current_exception.__cause__ or current_exception.__context__
        return _SUGGESTION.sub(r"\1", "".join(formatted.format()))
    except BaseException as second:  # an exception whose methods raise
        return f"{type(error).__name__} (its traceback cannot be printed: {type(second).__name__})\n"


def install_warning_hook(cell_name: Callable[[], str], missing_characters: set[str]) -> None:
    """Replaces `warnings.showwarning`.

    A warning that Python attributes to a frame of the sandbox, such as one raised while a figure is rendered, names
    the cell instead. Matplotlib's warnings about missing glyphs are not printed: their characters are added to
    `missing_characters`.
    """

    def show_warning(
        message: Any, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if glyph := _MISSING_GLYPH.match(str(message)):
            missing_characters.update(chr(int(number)) for number in glyph.groups() if number)
            return
        if filename.startswith(_SANDBOX_FOLDER):
            text = f"{cell_name()}: {category.__name__}: {message}\n"
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line)
        try:
            (file or sys.stderr).write(text)
        except (AttributeError, OSError):  # stderr is None or closed: as in Python's own function, the text is lost
            pass

    warnings.showwarning = show_warning
