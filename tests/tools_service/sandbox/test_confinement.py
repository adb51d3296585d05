"""Tests the confinement of cells and its consequences, in every isolation tier."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tests.tools_service.bench import Bench, alive, descendants, start_as_nobody
from tools_service.client import ExecRequest, Status, start_local_service

_SYSCALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
allowed = []
for name, number in dict(bpf=321, perf=298, userfaultfd=323, kexec=246, module=313, reboot=169, swapon=167, keyctl=250,
                         add_key=248, open_by_handle=304, ptrace=101, mount=165, umount=166, pivot_root=155, chroot=161,
                         setns=308, unshare=272, io_uring=425, personality=135, quotactl=179, fanotify=300,
                         process_vm_readv=310, process_vm_writev=311, pidfd_getfd=438, fsopen=430, syslog=103,
                         shmget=29, msgget=68, semget=64, mq_open=240, socket=41, iopl=172, acct=163, vhangup=153,
                         settimeofday=164, clock_settime=227, sethostname=170, kcmp=312, lookup_dcookie=212,
                         landlock=444, seccomp=317, name_to_handle=303, memfd_secret=447, move_pages=279).items():
    if libc.syscall(number, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38):
        allowed.append((name, ctypes.get_errno()))
print(allowed)
"""


def test_no_network_family_can_be_opened(bench, session):
    code = """
import socket, urllib.request
opened = []
for family in range(0, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        for protocol in (0, 17, 262):
            try: socket.socket(family, kind, protocol); opened.append((family, kind, protocol))
            except OSError: pass
print(opened)
try: urllib.request.urlopen('http://169.254.169.254/', timeout=5)
except OSError as error: print('refused')
a, b = socket.socketpair(); a.send(b'pair'); print(b.recv(9))
"""
    result = bench.run(session, code)
    assert result.stdout == "[]\nrefused\nb'pair'\n", result


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers are those of x86_64")
def test_calls_that_change_the_machine_or_reach_other_processes_are_denied(bench, session):
    assert bench.run(session, _SYSCALLS).stdout == "[]\n"


def test_nothing_of_the_environment_is_inherited(bench, session, monkeypatch):
    result = bench.run(session, "import os\nsorted(os.environ)")
    assert set(eval(result.stdout)) <= {
        "PATH", "HOME", "TMPDIR", "LANG", "MPLBACKEND", "MPLCONFIGDIR", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "PYTHONDONTWRITEBYTECODE",
    }  # fmt: skip


def test_files_of_the_host_the_service_and_hidden_packages_cannot_be_read(bench, session, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("canary")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    paths = [
        str(secret),
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hostname",
        "/proc/1/environ",
        "/root",
        "/home",
        __file__,
        pytest.__file__,
    ]
    code = f"""
import os
for path in {paths!r}:
    try:
        os.listdir(path) if os.path.isdir(path) and not os.path.islink(path) else open(path).read(1)
        if not (path == '/root' and all(n == '.pyenv' for n in os.listdir(path))): print('READ', path)
    except OSError: pass
try:
    import pytest; print('IMPORTED')
except ImportError: pass
"""
    result = bench.run(session, code)
    assert (result.status, result.stdout) == (Status.OK, ""), result


def test_libraries_can_be_used_and_not_changed(bench, session):
    code = """
import numpy, os
for path in (numpy.__file__, os.__file__):
    try: open(path, 'a'); print('WROTE', path)
    except OSError: pass
import scipy.ndimage, skimage.transform, cv2
print(numpy.linalg.inv(numpy.eye(2)).sum(), cv2.resize(numpy.zeros((4, 4, 3), 'uint8'), (8, 8)).shape)
"""
    assert bench.run(session, code).stdout == "2.0 (8, 8, 3)\n"


def test_sessions_neither_see_each_others_files_nor_processes_nor_random_numbers(bench, session):
    other = bench.new_session()
    folder = bench.run(
        session, "import os, numpy, random\nopen('mine', 'w').write('canary')\nprint(os.getcwd())"
    ).stdout.strip()
    pid = bench.run(session, "os.getpid()").stdout.strip()
    code = f"""
import os
for path in ('{folder}/mine', '/tmp/mine', '/dev/shm/mine'):
    try: print('READ', open(path).read())
    except OSError: pass
try: print('LISTED', [n for n in os.listdir(os.path.dirname('{folder}') + '/..') if 'mine' in n and 1/0])
except (OSError, ZeroDivisionError): pass
if {pid} != os.getpid():
    for number in (0, 9):
        try: os.kill({pid}, number); print('SIGNALLED')
        except OSError: pass
    try: os.sched_setaffinity({pid}, [0]); print('AFFINITY')
    except OSError: pass
"""
    assert "READ" not in (text := bench.run(other, code).stdout) and "SIGNALLED" not in text and "AFFINITY" not in text
    draws = "import numpy, random, uuid\nprint(numpy.random.rand(), random.random(), uuid.uuid4())"
    assert bench.run(session, draws).stdout != bench.run(other, draws).stdout
    assert bench.run(session, "open('mine').read()").stdout == "'canary'\n"
    bench.client.close_sessions([other])


def test_a_time_out_interrupts_the_cell_and_keeps_the_variables(bench, session):
    bench.run(session, "x = 41")
    started = time.monotonic()
    result = bench.run(session, "print('begun')\nimport time\ntime.sleep(60)", timeout_s=1)
    assert result.status is Status.TIMEOUT and result.stdout == "begun\n"
    assert "interrupted after 1 s" in result.stderr and time.monotonic() - started < 15
    follow = bench.run(session, "x + 1")
    assert (follow.stdout, follow.restarted) == ("42\n", False)


def test_a_cell_that_cannot_be_interrupted_is_killed_and_the_next_one_reports_it(bench, session):
    bench.run(session, "x = 1")
    code = "print('partial')\nimport time\nwhile True:\n    try: time.sleep(100)\n    except BaseException: pass"
    result = bench.run(session, code, timeout_s=1)
    assert result.status is Status.TIMEOUT and result.stdout == "partial\n"
    assert "its variables are lost" in result.message
    follow = bench.run(session, "'x' in globals()")
    assert (follow.stdout, follow.restarted) == ("False\n", True) and "fresh namespace" in follow.message
    assert bench.run(session, "1").restarted is False


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(1)",
        "import os; os.abort()",
        "import os; os.closerange(0, 256)",
    ],
)
def test_a_process_that_ends_is_reported_and_never_passes_for_success(bench, session, code):
    bench.run(session, "x = 1")
    assert bench.run(session, code).status is Status.CRASHED
    follow = bench.run(session, "'x' in globals()")
    assert (follow.stdout, follow.restarted) == ("False\n", True)


@pytest.mark.parametrize(
    "attack",
    [
        "struct.pack('!II', 0xfffffff0, 0xffffffff) + b'x' * 100",
        "b'\\x00' * 64",
        '(lambda h: struct.pack(\'!II\', len(h), 0) + h)(b\'{"nonce": "0", "status": "ok", "blobs": [0, 0]}\')',
        "(lambda h: struct.pack('!II', len(h), 0) + h)(b'{\"nonce\": NaN, \"blobs\": [1e999]}')",
        "(lambda h: struct.pack('!II', len(h), 0) + h)(b'[' * 60000)",
    ],
)
def test_forged_answers_end_the_session_and_answer_nothing_else(bench, session, attack):
    result = bench.run(session, f"import os, struct, time\nos.write(3, {attack})\ntime.sleep(5)")
    assert result.status is Status.CRASHED and "bad reply" in result.message
    assert bench.run(session, "'fresh'").stdout == "'fresh'\n"


def test_a_huge_allocation_fails_and_the_session_goes_on(bench, session):
    result = bench.run(session, "b = bytearray(8 << 30)")
    assert result.status is Status.ERROR and "MemoryError" in result.stderr
    assert bench.run(session, "1").restarted is False


def test_eating_memory_bit_by_bit_ends_that_session_alone(bench, session):
    other = bench.new_session()
    bench.run(other, "x = 7")
    code = "l = []\nwhile True: l.append(bytearray(b'x') * (32 << 20))"
    result = bench.run(session, code, timeout_s=60)
    assert result.status in (Status.OOM, Status.ERROR)
    if result.status is Status.ERROR:
        assert "MemoryError" in result.stderr
    else:
        assert bench.run(session, "1").restarted is True
    assert bench.run(other, "x").stdout == "7\n"
    bench.client.close_sessions([other])


@pytest.mark.parametrize("tier", ["best", "landlock"])
def test_all_sessions_together_stay_within_their_memory(tier, tmp_path):
    limits = ["--memory-mb", "600", "--all-memory-mb", "800", "--packages", "numpy,pillow", "--warm", "2"]
    if tier == "best":
        bench = Bench(start_local_service(log_path=tmp_path / "log.txt", extra_args=limits))
    elif os.geteuid() != 0:
        pytest.skip("becoming an unprivileged user needs root")
    else:
        bench = Bench(start_as_nobody(tmp_path / "log.txt", "--tier", "landlock", *limits))
    try:
        code = "b = bytearray(b'x') * (450 << 20)\nimport time\ntime.sleep(15)\nlen(b) >> 20"
        names = ["greedy-0", "greedy-1", "greedy-2"]
        bench.run("modest", "x = 1")
        bench.client.submit([ExecRequest(f"r-{n}", n, code, 60.0) for n in names])
        statuses = [result.status for result in bench.results(3)]
        assert statuses.count(Status.OK) <= 1 and Status.OOM in statuses, statuses
        assert bench.run("modest", "x").stdout == "1\n"
    finally:
        bench.close()


def test_a_fork_bomb_is_bounded_killed_and_leaves_others_alone(bench, session):
    other = bench.new_session()
    bench.run(other, "x = 7")
    before = len(descendants(bench.service.process.pid))
    peak = []
    stop = threading.Event()

    def count() -> None:
        while not stop.wait(0.3):
            peak.append(len(descendants(bench.service.process.pid)))

    counter = threading.Thread(target=count)
    counter.start()
    result = bench.run(session, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=2)
    stop.set()
    counter.join()
    assert result.status in (Status.TIMEOUT, Status.CRASHED)
    assert max(peak, default=0) - before < 2500
    assert bench.run(other, "x").stdout == "7\n"
    deadline = time.monotonic() + 120
    while len(alive(descendants(bench.service.process.pid))) > before + 24 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(alive(descendants(bench.service.process.pid))) <= before + 24
    assert bench.run(session, "import subprocess; subprocess.run(['/bin/true']).returncode").stdout == "0\n"
    bench.client.close_sessions([other])


def test_what_an_interrupted_cell_began_ends_with_it(bench, session):
    """Catches children of an interrupted cell that keep using up the session's process limit."""
    bench.run(
        session, "import os, subprocess, time\nearlier, x = subprocess.Popen(['/bin/sleep', '300']), 7; time.sleep(0.1)"
    )
    before = len(alive(descendants(bench.service.process.pid)))
    bomb = "children = []\nfor _ in range(30):\n    children.append(os.fork())\n    while not children[-1]: time.sleep(0.01)\ntime.sleep(60)"
    result = bench.run(session, bomb, timeout_s=2)
    assert result.status is Status.TIMEOUT and not result.restarted
    many = "print(x, earlier.poll(), [subprocess.run(['/bin/true']).returncode for _ in range(3)])"
    assert bench.run(session, many).stdout == "7 None [0, 0, 0]\n"
    assert len(alive(descendants(bench.service.process.pid))) < before + 24


def test_processes_left_behind_die_with_the_session(bench, session):
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
print('left behind')
"""
    before = set(descendants(bench.service.process.pid))
    assert bench.run(session, code).stdout == "left behind\n"
    bench.run(session, "import os; os._exit(1)")
    deadline = time.monotonic() + 10
    orphans = []
    while time.monotonic() < deadline:
        now = set(descendants(bench.service.process.pid)) - before
        orphans = [p for p in alive(sorted(now)) if _sleeps_in_a_loop(p)]
        if not orphans:
            break
        time.sleep(0.1)
    assert orphans == []


def _sleeps_in_a_loop(pid: int) -> bool:
    """Returns True for the orphaned grandchild of the test above, which has no control channel."""
    try:
        return not any(
            os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False


def test_a_flood_of_output_is_stopped_early_whoever_writes_it(bench, session):
    for code in (
        "while True: print('A' * 65536)",
        "import subprocess\nsubprocess.run(['/usr/bin/yes'], stdout=2)",
    ):
        result = bench.run(session, code, timeout_s=20)
        assert result.status is Status.OUTPUT_LIMIT, result.status
        assert len(result.stdout) + len(result.stderr) < 600_000
        assert result.wall_ms < 15_000
    assert bench.run(session, "1").stdout == "1\n"


def test_files_are_limited_in_size_number_and_total(bench, session):
    code = """
import os
try: open('sparse', 'wb').truncate(1 << 40); print('MADE')
except OSError as error: print(error.errno)
try:
    handles = []
    while True: handles.append(open('/dev/null'))
except OSError as error: print(error.errno, len(handles) < 130)
"""
    assert bench.run(session, code).stdout == "27\n24 True\n"
    assert bench.run(session, "del handles\n1").stdout == "1\n"
    code = "try:\n    for i in range(400): open(f'f{i}', 'wb').write(bytes(10_000_000))\nexcept OSError as error: print(error.errno)"
    result = bench.run(session, code)
    if bench.tier == "landlock":  # no private file system: the watchdog ends the session
        assert result.status is Status.CRASHED and "disk" in result.message
    else:
        assert result.stdout == "28\n"


def test_a_thread_left_running_is_stopped_between_cells_and_goes_on_in_the_next(bench, session):
    before = set(descendants(bench.service.process.pid))
    code = "import threading\nn = 0\ndef spin():\n    global n\n    while True: n += 1\nthreading.Thread(target=spin, daemon=True).start()"
    bench.run(session, code)
    deadline = time.monotonic() + 30
    stopped: list[int] = []
    while not stopped and time.monotonic() < deadline:
        time.sleep(0.2)
        stopped = [p for p in descendants(bench.service.process.pid) if _state(p) == "T"]
    assert len(stopped) == 1, before
    assert bench.run(session, "a = n\nimport time\ntime.sleep(0.5)\nn > a").stdout == "True\n"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_killing_session_processes_under_load_gives_every_request_exactly_one_answer(bench):
    sessions = [bench.new_session() for _ in range(6)]
    for name in sessions:
        bench.run(name, "import time")
    server = bench.service.process.pid
    idle = set(descendants(server))
    bench.client.submit(
        [ExecRequest(f"{name}-{i}", name, "time.sleep(0.3)\n'done'", 20.0) for i in range(3) for name in sessions]
    )
    time.sleep(0.5)
    manager = next(p for p in descendants(server) if _parent(p) == server)
    workers = [p for p in idle if _parent(p) == manager]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    results = bench.results(18)
    assert sorted(r.request_id for r in results) == sorted(f"{name}-{i}" for i in range(3) for name in sessions)
    assert {r.status for r in results} <= {Status.OK, Status.CRASHED, Status.ERROR, Status.UNAVAILABLE}
    assert any(r.status is Status.CRASHED for r in results) or any(r.restarted for r in results)
    assert bench.client.poll(0.5) == []
    bench.client.close_sessions(sessions)


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
