"""Each limit has a mechanism under every isolation, and the service names it."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.tools_service.bench import ISOLATIONS, Bench, start_isolated
from tools_service.client import ExecRequest, Status
from tools_service.sandbox.protocol import enforcement
from tools_service.sandbox.protocol.isolation_config import IsolationConfig, Limits

LIGHT = ["--packages", "numpy,pillow", "--warm", "2"]
_CPU = {"cpu_cores", "all_cores"}  # bandwidth has no mechanism but cgroups


def config(*, namespaces: bool, cgroups: str, uid_base: int, limits: Limits | None = None) -> IsolationConfig:
    return IsolationConfig(
        "landlock", namespaces, False, uid_base, cgroups, 7, True, limits or Limits(), (), "/tmp/x", 100
    )


@pytest.mark.parametrize(
    ("namespaces", "cgroups", "uid_base"), itertools.product([True, False], ["v2", "v1", "none"], [0, 610_000])
)
def test_limit_enforcers__every_limit_is_enforced_by_something_that_is_there(namespaces, cgroups, uid_base):
    """Catches: a limit whose mechanism is switched by the presence of another one, such as disk by that of cgroups."""
    enforcers = enforcement.limit_enforcers(config(namespaces=namespaces, cgroups=cgroups, uid_base=uid_base))
    assert {name for name, by in enforcers.items() if by == "not enforced"} == (_CPU if cgroups == "none" else set())
    assert {name for name, by in enforcers.items() if by == "cgroup"} <= (
        set() if cgroups == "none" else set(enforcers)
    )
    assert (enforcers["disk_mb"], enforcers["inodes"]) == (("tmpfs",) * 2 if namespaces else ("watchdog",) * 2)
    if cgroups != "v2" and uid_base == 0:  # RLIMIT_NPROC does not bind user id 0
        assert enforcers["processes"] == "watchdog"


def test_describe_limits__names_value_unit_and_mechanism():
    line = enforcement.describe_limits(config(namespaces=False, cgroups="v1", uid_base=0, limits=Limits(memory_mb=512)))
    assert line.startswith("memory 512 MB (cgroup), disk 64 MB (watchdog), files and folders 2048 (watchdog)")
    assert "processes 48 (watchdog)" in line and "processes of all sessions" not in line


@pytest.fixture(scope="module", params=ISOLATIONS)
def isolated(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("limits") / "log.txt"
    arguments = ["--all-processes", "60", "--processes", "40", *LIGHT]
    bench = Bench(start_isolated(request.param, log, *arguments))
    yield request.param, bench
    bench.close()
    assert "Traceback" not in log.read_text(errors="replace")


def test_service__shows_limits_and_mechanisms_at_the_start_and_in_info(isolated):
    """Catches: a service that names another mechanism than the one in force."""
    name, bench = isolated
    info = bench.client.info()
    (line,) = [line for line in bench.service.banner if line.startswith("limits: ")]
    disk = "tmpfs" if "namespaces" in name else "watchdog"
    assert f"disk 64 MB ({disk})" in line and info["enforced_by"]["disk_mb"] == disk
    if "cgroups" not in name:
        assert "memory 1024 MB (watchdog)" in line and "cpu 1 cores (not enforced)" in line
    assert "processes of all sessions 60" in line


def test_service__as_root_gives_each_session_an_unprivileged_user_of_its_own(isolated):
    """Catches: sessions that share user id 0, or that of the service, although it may change it."""
    name, bench = isolated
    code = (
        "import os, subprocess, sys\n"
        "ids = {*os.getresuid(), *os.getresgid()}\n"
        "child = subprocess.run([sys.executable, '-I', '-S', '-c', 'import os, json; print(os.getuid())'], capture_output=True)\n"
        "print(sorted(ids), child.stdout.decode().strip(), child.returncode)"
    )
    results = [bench.run(bench.new_session(), code, timeout_s=60.0) for _ in range(2)]
    assert [result.status for result in results] == [Status.OK] * 2, results
    texts = [result.stdout for result in results]
    users = {eval(text.split("]")[0] + "]")[0] for text in texts}
    for text in texts:
        assert text == f"[{(user := eval(text.split(']')[0] + ']')[0])}] {user} 0\n"
    if name.startswith("nobody"):
        assert len(users) == 1 and min(users) > 0
    else:
        assert len(users) == 2 and min(users) >= 610_000


def test_service__all_sessions_together_stay_within_their_processes(isolated):
    """Catches: `all_processes` that is accepted and enforced by nobody without cgroups v2."""
    _, bench = isolated
    calm, greedy = bench.new_session(), [bench.new_session() for _ in range(3)]
    bench.run(calm, "x = 7")
    code = (
        "import os, time\n"
        "for _ in range(30):\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "    except OSError: break\n"
        "for _ in range(60): time.sleep(0.1)\n"
        "print('forked')"
    )
    requests = [ExecRequest(f"{name}-{time.monotonic_ns()}", name, code, 40.0) for name in greedy]
    bench.client.submit(requests)
    statuses = [result.status for result in bench.results(3)]
    assert Status.CRASHED in statuses and statuses.count(Status.OK) <= 1, statuses
    assert bench.run(calm, "x").stdout == "7\n"
    bench.client.close_sessions([calm, *greedy])


def test_service__bandwidth_of_the_cpu_is_limited_where_something_limits_it(isolated):
    """Catches: a cpu limit that is named as enforced and is not. Four spinning processes get one core at most."""
    _, bench = isolated
    if bench.enforced_by["cpu_cores"] == "not enforced":
        pytest.skip("no mechanism limits the bandwidth here, and the service says so")
    name = bench.new_session()
    code = (
        "import os, time\n"
        "def spin(until):\n"
        "    while time.monotonic() < until: pass\n"
        "start, end = time.monotonic(), time.monotonic() + 3\n"
        "pids = []\n"
        "for _ in range(4):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: spin(end); os._exit(0)\n"
        "    pids.append(pid)\n"
        "used = sum(sum(os.wait4(pid, 0)[2][:2]) for pid in pids)\n"
        "print(used / (time.monotonic() - start))"
    )
    result = bench.run(name, code, timeout_s=60)
    assert float(result.stdout) < 1.3, result
