"""Kills the processes that an interrupted cell began, and notices when all of them have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

_MAX_KILL_ROUNDS = 100  # passes of SIGSTOP over the process list; a fork bomb needs at most one per allowed process
_GIVE_UP_S = 10.0  # a killed process that has not ended by then hangs in the kernel
POLL_S = 0.005  # time between two looks at killed processes


class DescendantKills:
    """The kills that are under way, by worker number.

    A killed process counts towards the session's process limit until it has ended, which takes seconds on a loaded
    machine, so the next cell must not start before.
    """

    def __init__(self, session_pids: Callable[[int, float], list[int]]):
        """`session_pids` returns the processes of a session that started since a time (CLOCK_BOOTTIME, seconds)."""
        self._session_pids = session_pids
        self._dying: dict[int, tuple[list[int], float]] = {}  # worker number → (pids, time to give up)

    def start(self, number: int, pid: int, since: float) -> None:
        """Kills the processes of the session of `pid` that started since `since`, except its first one.

        All of them are stopped before any is killed: a fork bomb cannot reuse the process slots of those that ended.
        """
        stopped: list[int] = []
        for _ in range(_MAX_KILL_ROUNDS):
            found = [p for p in self._session_pids(pid, since) if p != pid and p not in stopped]
            if not found:
                break
            _signal_all(found, signal.SIGSTOP)
            stopped += found
        _signal_all(stopped, signal.SIGKILL)
        self._dying[number] = stopped, time.monotonic() + _GIVE_UP_S

    def pending(self) -> bool:
        """Returns True while killed processes have not ended."""
        return bool(self._dying)

    def take_finished(self) -> list[int]:
        """Returns, once, the workers whose killed processes have all ended."""
        now, finished = time.monotonic(), []
        for number, (pids, give_up) in list(self._dying.items()):
            running = [pid for pid in pids if _runs(pid)]
            if running and now < give_up:
                self._dying[number] = running, give_up
            else:
                del self._dying[number]
                finished.append(number)
        return finished


def _runs(pid: int) -> bool:
    """Returns False for a process that has ended, also if its parent has not reaped it yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
