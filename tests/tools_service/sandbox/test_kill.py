"""SIGKILL of each process under load: every request gets exactly one result, no cell runs twice, nothing is leaked."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from benchmarks import processes
from tests.tools_service.bench import wait_until_gone
from tools_service.client import ExecRequest, Status, ToolResult, ToolsClient, start_local_service

LIGHT = ["--packages", "numpy,pillow", "--warm", "3"]  # starts in a second, without the plotting libraries
SESSIONS = 8
_HUNG_S = 120.0
_COUNT = "import time\nn = globals().get('n', 0) + 1\ntime.sleep(0.03)\nprint(n)"
_LOST = {Status.SESSION_LOST, Status.UNAVAILABLE, Status.CRASHED}


class Traffic:
    """Load of sessions that count their cells, with one cell in flight in each."""

    def __init__(self, address: str):
        self.client = ToolsClient(address)
        self._ids = itertools.count()
        self._counts: dict[str, int | None] = {f"s{i}": 0 for i in range(SESSIONS)}  # None: its namespace may be lost
        self._asked: dict[str, str] = {}  # request id → session
        self._answered: set[str] = set()

    def flow(self, answers: int, act: Callable[[], object] | None = None) -> list[ToolResult]:
        """Runs until `answers` more results have arrived and none is in flight; calls `act` after a third of them."""
        found: list[ToolResult] = []
        heard = time.monotonic()
        while len(found) < answers or self._asked:
            idle = self._counts.keys() - set(self._asked.values())
            if len(found) < answers and idle:
                requests = [ExecRequest(f"r{next(self._ids)}", name, _COUNT, 30.0) for name in sorted(idle)]
                self._asked |= {request.request_id: request.session_id for request in requests}
                self.client.submit(requests)
            for result in self.client.poll(0.2):
                heard = time.monotonic()
                self._check(result)
                found.append(result)
            if act is not None and len(found) >= answers // 3:
                act()
                act = None
            assert time.monotonic() < heard + _HUNG_S, f"no answer to {self._asked}"
        return found

    def _check(self, result: ToolResult) -> None:
        assert result.request_id not in self._answered, f"a second answer: {result}"
        session = self._asked.pop(result.request_id)
        self._answered.add(result.request_id)
        before = self._counts[session]
        if result.status is not Status.OK:
            self._counts[session] = None
            return
        value = int(result.stdout)
        fresh = value == 1 and (before in (None, 0) or result.restarted)
        assert fresh or before is None or value == before + 1, f"{session}: {value} after {before}; {result}"
        self._counts[session] = value


@pytest.fixture
def traffic(tmp_path):
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    running = [service]
    flow = Traffic(service.address)
    yield flow, running
    flow.client.close()
    for each in running:
        each.stop()


def _statuses(results: list[ToolResult]) -> set[Status]:
    return {result.status for result in results}


def _kill(*pids: int) -> None:
    """Kills the processes and waits until they have ended, which takes long on a loaded machine."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not wait_until_gone(list(pids))


def test_one_answer_each_whatever_is_killed(traffic, tmp_path):
    """Catches: a lost or duplicated result, a cell executed twice, and resources that outlive their owner process."""
    flow, (service,) = traffic
    server = service.process.pid
    assert _statuses(flow.flow(40)) == {Status.OK}

    before = processes.roles(server)
    oldest = sorted(before.others, key=lambda pid: psutil.Process(pid).create_time())[:3]
    results = flow.flow(60, lambda: _kill(*oldest))
    assert _statuses(results) <= {Status.OK, Status.CRASHED} and any(r.restarted for r in results)

    zygote = processes.roles(server).zygote
    assert _statuses(flow.flow(60, lambda: _kill(zygote))) == {Status.OK}
    for _ in range(5):  # more than the size of the warm pool
        name = f"fresh{time.monotonic_ns()}"
        flow.client.submit([ExecRequest(name, name, "print(1)", 30.0)])
        assert [r.stdout for r in _wait(flow.client, 1)] == ["1\n"]
    assert processes.roles(server).zygote != zygote

    before = processes.roles(server)
    results = flow.flow(60, lambda: _kill(before.manager))
    assert _statuses(results) <= {Status.OK, *_LOST} and _statuses(results) & _LOST
    assert _statuses(flow.flow(2 * SESSIONS)[-SESSIONS:]) == {Status.OK}
    gone = processes.Roles(before.manager, before.manager, before.zygote, before.others)
    assert processes.left_behind(gone) == []

    before = processes.roles(server)

    def crash_and_start_again() -> None:
        _kill(server)
        service.process.wait()
        port = service.address.rpartition(":")[2]
        traffic[1].append(start_local_service(log_path=tmp_path / "second.txt", extra_args=["--port", port, *LIGHT]))

    results = flow.flow(60, crash_and_start_again)
    assert _statuses(results) <= {Status.OK, Status.SESSION_LOST, Status.UNAVAILABLE}
    assert _statuses(flow.flow(3 * SESSIONS)[-SESSIONS:]) == {Status.OK}
    assert processes.left_behind(before) == []

    after = processes.roles(traffic[1][1].process.pid)
    traffic[1][1].stop()
    assert processes.left_behind(after) == []
    assert flow.client.poll(0.5) == [] and flow.client.pending() == 0


def _wait(client: ToolsClient, count: int) -> list[ToolResult]:
    found: list[ToolResult] = []
    deadline = time.monotonic() + _HUNG_S
    while len(found) < count:
        assert time.monotonic() < deadline
        found += client.poll(1.0)
    return found


def test_all_at_once_while_cells_wait_and_run(tmp_path):
    """Kills manager, zygote and all sessions at once, with cells queued.

    Catches: a request that waits for a process that has ended.
    """
    service = start_local_service(log_path=tmp_path / "log.txt", extra_args=LIGHT)
    client = ToolsClient(service.address)
    requests = [ExecRequest(f"q{i}", f"s{i % 4}", _COUNT, 30.0) for i in range(48)]
    client.submit(requests)
    found = _wait(client, 6)
    roles = processes.roles(service.process.pid)
    _kill(roles.manager, roles.zygote, *roles.others)
    found += _wait(client, len(requests) - len(found))
    assert Counter(r.request_id for r in found) == Counter(r.request_id for r in requests)
    assert _statuses(found) <= {Status.OK, *_LOST} and _statuses(found) & _LOST
    client.submit([ExecRequest("again", "s9", "print(2)", 30.0)])
    assert [r.stdout for r in _wait(client, 1)] == ["2\n"]
    client.close()
    service.stop()
    assert processes.left_behind(processes.Roles(roles.server, roles.manager, roles.zygote, roles.others)) == []


def test_a_manager_that_is_killed_again_while_it_starts_is_started_again(traffic):
    """Catches: a service that answers UNAVAILABLE permanently after its manager failed again during a restart."""
    flow, (service,) = traffic
    assert _statuses(flow.flow(SESSIONS)) == {Status.OK}
    killed: set[int] = set()
    deadline = time.monotonic() + _HUNG_S
    while len(killed) < 3:
        assert time.monotonic() < deadline
        for process in psutil.Process(service.process.pid).children():
            if process.pid not in killed and process.is_running():
                killed.add(process.pid)
                _kill(process.pid)
        time.sleep(0.01)
    while (last := _statuses(flow.flow(SESSIONS)[-SESSIONS:])) != {Status.OK}:
        assert time.monotonic() < deadline, last
