"""Processes that a session's cells leave behind. Runs inside a session."""

from __future__ import annotations

import gc
import os
import subprocess
import sys


def bury() -> None:
    """Reaps ended children, orphans included: each would otherwise keep one of the session's few places.

    Where a Popen or multiprocessing object waits for one of them, that object learns the exit status first.
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
            _quietly(value.poll)
        elif process is not None and issubclass(kind, process):
            _quietly(lambda value=value: value.exitcode)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _quietly(ask) -> None:
    try:
        ask()
    except Exception:  # the cell's own subclass, or one not started: its affair
        pass
