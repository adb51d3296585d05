"""Reaps child processes that a session's cells leave behind. Runs inside a session."""

from __future__ import annotations

import gc
import os
import subprocess
import sys


def reap_zombies() -> None:
    """Reaps ended children, including adopted orphans; a zombie counts towards the session's process limit.

    `Popen` and `multiprocessing` objects poll first, so that they record the exit status of their own child.
    """
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
    except ChildProcessError:
        return
    process = getattr(sys.modules.get("multiprocessing.process"), "BaseProcess", None)
    for value in gc.get_objects():
        kind = type(value)
        if issubclass(kind, subprocess.Popen):
            _ignore_errors(value.poll)
        elif process is not None and issubclass(kind, process):
            _ignore_errors(lambda value=value: value.exitcode)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _ignore_errors(poll) -> None:
    try:
        poll()
    except Exception:  # a subclass defined by the cell, or a process that was never started
        pass
