"""Tests of the processes that compare mathematics: deadlines on any thread, replacement, and no process left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from dv2_jax.rewards import verdict_pool
from dv2_jax.rewards.matching import answers_match
from dv2_jax.rewards.verdict_pool import VerdictPool, WorkerError

ENDLESS = r"\sum_{k=1}^{10^7} \frac{1}{k}"  # sympy evaluates it term by term
HOLDS_THE_LOCK = "9^{9^{9}}"  # one call of integer arithmetic that holds the interpreter lock


@pytest.fixture
def pool():
    pool = VerdictPool(size=2, deadline_s=1.0)
    yield pool
    pool.close()


def is_alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def in_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive(), "the verdict has no deadline"
    return results[0]


@pytest.mark.parametrize("expression", [ENDLESS, HOLDS_THE_LOCK])
def test_a_verdict_has_a_deadline_on_any_thread(pool, expression):
    """Catches: a limit kept by signals, which only the main thread receives, or by a thread, which a held lock stops."""
    assert pool.verdict("x+1", "1+x") is True  # a worker is ready
    started = time.monotonic()
    assert in_thread(pool.verdict, expression, "1") is None
    assert time.monotonic() - started < 60
    assert pool.verdict("x+2", "2+x") is True  # a killed worker is replaced


def test_endless_answers_do_not_block_others(pool):
    """Catches: one worker for all threads, a dead worker kept in its slot, replies given to the wrong request."""
    pairs = [(ENDLESS, "1"), ("x+1", "1+x"), (HOLDS_THE_LOCK, "2"), ("x+1", "x+2"), ("99999999!", "3"), ("2x", "x+x")]
    assert pool.verdicts(pairs) == [None, True, None, False, None, True]
    threads = [threading.Thread(target=pool.verdict, args=(f"x+{n}", f"{n}+x")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(pool.verdicts([(f"x+{n}", f"{n}+x") for n in range(20)])) and len(pool.process_ids()) <= 2


def test_answers_that_are_costly_to_evaluate_are_refused_before_parsing(monkeypatch):
    """Catches: the cost of an answer left to the deadline."""
    monkeypatch.setattr(verdict_pool, "_shared", None)
    for text in (
        ENDLESS,
        HOLDS_THE_LOCK,
        "9**9**9",
        "99999!",
        "((3!)!)!",
        "x^{99999}",
        "1+" * 200 + "x",
        "10^{10^{10}}-x",
    ):
        assert not in_thread(answers_match, text, "x+1", "math")
    assert verdict_pool._shared is None or not verdict_pool._shared.process_ids()


def test_memory_is_limited(pool):
    """Catches: an answer that fills the machine's memory within the deadline."""
    assert pool.verdict("x+1", "1+x") is True
    (pid,) = pool.process_ids()
    (limit,) = [line for line in open(f"/proc/{pid}/limits") if line.startswith("Max address space")]
    assert int(limit.split()[3]) <= 2 << 30


def test_a_killed_worker_is_replaced(pool):
    assert pool.verdict("a+1", "1+a") is True
    (pid,) = pool.process_ids()
    os.kill(pid, signal.SIGKILL)
    assert pool.verdict("a+2", "2+a") in (None, True)
    assert pool.verdict("a+3", "3+a") is True
    assert not is_alive(pid)


def test_a_worker_ends_without_its_parent():
    """Catches: orphans that compute on after the parent was killed, whose input ends but who never read it."""
    program = textwrap.dedent(f"""
        import os, threading, time
        from dv2_jax.rewards.verdict_pool import VerdictPool
        pool = VerdictPool(size=2, deadline_s=3.0)
        pool.verdicts([("x+1", "1+x"), ("x+2", "2+x")])
        print(*pool.process_ids(), flush=True)
        threading.Thread(target=pool.verdict, args=({ENDLESS!r}, "1"), daemon=True).start()
        time.sleep(0.5)
        os.kill(os.getpid(), 9)
    """)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=200)
    pids = list(map(int, done.stdout.split()))
    end = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert pids and not any(map(is_alive, pids))


def test_no_process_is_left_at_exit_or_shared_with_a_forked_child():
    """Catches: workers that survive the program, a forked child that kills or reads its parent's workers."""
    program = textwrap.dedent("""
        import os
        from dv2_jax.rewards.matching import answers_match
        from dv2_jax.rewards.verdict_pool import shared_pool
        assert answers_match("x+1", "1+x", "math")
        pids = shared_pool().process_ids()
        child = os.fork()
        if not child:
            assert not shared_pool().process_ids()
            assert answers_match("y+1", "1+y", "math")
            assert not set(pids) & set(shared_pool().process_ids())
            print(*shared_pool().process_ids(), flush=True)
            raise SystemExit(0)  # runs the exit handlers
        assert os.waitpid(child, 0)[1] == 0
        assert answers_match("z+1", "1+z", "math") and shared_pool().process_ids() == pids
        print(*pids, flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 0
    pids = list(map(int, done.stdout.split()))
    end = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(is_alive, pids))


def test_the_shared_pool_can_be_closed_and_used_again():
    assert answers_match("x+5", "5+x", "math")
    pids = verdict_pool.shared_pool().process_ids()
    verdict_pool.close_shared_pool()
    assert not any(map(is_alive, pids))
    assert answers_match("x+6", "6+x", "math")


def test_a_worker_is_light_and_runs_without_the_package(pool):
    """Catches: JAX imported by a worker, which takes seconds and hundreds of megabytes."""
    assert pool.verdict("x+1", "1+x") is True
    (pid,) = pool.process_ids()
    assert "jax" not in open(f"/proc/{pid}/maps").read()


def test_a_worker_that_cannot_start_is_an_error_with_its_reason(pool, monkeypatch, tmp_path):
    """Catches: math-verify missing, and every mathematical answer silently wrong."""
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(WorkerError, match="broken here"):
        pool.verdict("x+1", "1+x")
    monkeypatch.undo()
    assert pool.verdict("x+1", "1+x") is True


def test_concurrent_closing_does_not_hang(pool):
    thread = threading.Thread(target=pool.verdict, args=(ENDLESS, "1"), daemon=True)
    assert pool.verdict("x+1", "1+x") is True
    thread.start()
    time.sleep(0.2)
    pool.close()
    thread.join(30)
    assert not thread.is_alive() and not pool.process_ids()
    with pytest.raises(WorkerError, match="closed"):
        pool.verdict("x+9", "9+x")
