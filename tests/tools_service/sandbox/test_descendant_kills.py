"""The end of the processes that an interrupted cell began."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.tools_service.bench import alive
from tools_service.sandbox.manager import descendant_kills


@pytest.fixture
def children():
    started = [subprocess.Popen(["/bin/sleep", "600"]) for _ in range(3)]
    yield [child.pid for child in started]
    for child in started:
        child.kill()
        child.wait()


def test_take_finished__comes_after_the_last_process_has_ended(children, monkeypatch):
    """Catches: a next cell that starts while killed processes still use up the session's process limit."""
    sent = []
    kills = descendant_kills.DescendantKills(lambda pid, since: [os.getpid(), *children])
    with monkeypatch.context() as patch:
        patch.setattr(descendant_kills.os, "kill", lambda pid, number: sent.append((pid, number)))
        kills.start(7, os.getpid(), 0.0)
    stops, ends = [[(pid, number) for pid in children] for number in (signal.SIGSTOP, signal.SIGKILL)]
    assert sent == stops + ends, (
        "all are stopped before the first is killed, and the session's first process is neither"
    )
    assert kills.take_finished() == [] and kills.pending()
    for pid in children[:2]:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(alive(children)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kills.take_finished() == [] and kills.pending()
    os.kill(children[2], signal.SIGKILL)
    while alive(children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kills.take_finished() == [7] and not kills.pending() and kills.take_finished() == []


def test_take_finished__gives_up_a_process_that_hangs_in_the_kernel(children, monkeypatch):
    """Catches: a session that never gets its result because one process cannot be killed."""
    kills = descendant_kills.DescendantKills(lambda pid, since: children)
    monkeypatch.setattr(descendant_kills, "_GIVE_UP_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(descendant_kills.os, "kill", lambda pid, number: None)
        kills.start(7, os.getpid(), 0.0)
    assert kills.take_finished() == [7] and alive(children) == children
