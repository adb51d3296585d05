"""A small pool of processes that compare expressions, each verdict with a deadline, from any thread.

Parsing and simplifying what a policy wrote can take unbounded time and hold the interpreter lock, so neither signals
nor threads can bound it. A worker that misses the deadline is killed and replaced at the next request.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dv2_jax.config import RunFailure

DEADLINE_S = 5.0  # per verdict
START_S = 120.0  # for the imports of a worker, also on a busy machine
_CACHED_VERDICTS = 1 << 14  # the samples of a group often give the same answer
_BOOTSTRAP = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"
)
_PROGRAM = Path(__file__).with_name("math_worker.py")


class WorkerError(RunFailure):
    """A worker could not start: math-verify is missing or broken."""


class _Worker:
    """One process and its pipes."""

    def __init__(self) -> None:
        # The parent's import path, because the script's own folder must not shadow standard modules.
        path = json.dumps([entry for entry in sys.path if entry])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOTSTRAP, path, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's
            bufsize=0,
        )
        self._received = b""

    def wait_ready(self) -> None:
        reply = self._receive(START_S)
        if reply is None or "ready" not in reply:
            self.kill()
            reason = (reply or {}).get("error", "the process ended or did not answer")
            raise WorkerError(f"the process that compares mathematics did not start: {reason}")

    def ask(self, request: Mapping[str, Any], deadline_s: float) -> Any:
        """Returns the answer; None when the deadline passed or the process died, which it does not survive."""
        line = json.dumps({**request, "limit_s": deadline_s + 1.0}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            reply = self._receive(deadline_s)
        except OSError:
            reply = None
        if reply is None:
            self.kill()
        return None if reply is None else reply["answer"]

    def _receive(self, seconds: float) -> dict | None:
        """Returns the next reply; None after `seconds` or at the end of the output."""
        stdout, end = self.process.stdout, time.monotonic() + seconds
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while b"\n" not in self._received:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                return None
            chunk = os.read(stdout.fileno(), 4096)
            if not chunk:
                return None
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


class VerdictPool:
    """Up to `size` workers, started when first needed. Thread-safe."""

    def __init__(self, size: int | None = None, deadline_s: float = DEADLINE_S):
        self.size = size or max(2, min(8, os.cpu_count() or 1))
        self.deadline_s = deadline_s
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a slot without a process
        for _ in range(self.size):
            self._slots.put(None)
        self._lock = threading.Lock()
        self._running: set[_Worker] = set()
        self._closed = False
        self._cached = functools.lru_cache(_CACHED_VERDICTS)(self._ask)

    def verdict(self, prediction: str, reference: str) -> bool | None:
        """Returns whether two LaTeX expressions are equal; None when no worker decided within the deadline.

        Waiting for a free worker does not count.

        Raises:
            WorkerError: math-verify cannot be imported.
        """
        return self._cached("pair", (prediction, reference))

    def sympy_text(self, latex: str) -> str | None:
        """Returns a LaTeX expression as sympy prints it; empty if it cannot be parsed, None after the deadline.

        Raises:
            WorkerError: as `verdict`.
        """
        return self._cached("print", latex)

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Returns the verdicts of a batch, computed by all workers in parallel."""
        if len(pairs) < 2:
            return [self.verdict(*pair) for pair in pairs]
        with ThreadPoolExecutor(min(self.size, len(pairs)), thread_name_prefix="verdicts") as threads:
            return list(threads.map(lambda pair: self.verdict(*pair), pairs))

    def process_ids(self) -> list[int]:
        with self._lock:
            return [worker.process.pid for worker in self._running]

    def close(self) -> None:
        """Kills all workers. A request in flight then gets no verdict."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, set()
        for worker in running:
            worker.process.kill()
            worker.process.wait()

    def _ask(self, kind: str, content: str | tuple[str, str]) -> Any:
        worker = self._slots.get()
        try:
            if worker is None:
                worker = self._start()
            answer = worker.ask({kind: content}, self.deadline_s)
            if answer is None:
                self._forget(worker)
                worker = None
            return answer
        except BaseException:
            if worker is not None:  # an interrupt between request and reply: the reply must not answer the next one
                self._forget(worker)
                worker.kill()
                worker = None
            raise
        finally:
            self._slots.put(worker)

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise WorkerError("the pool of workers is closed")
            worker = _Worker()
            self._running.add(worker)
        try:
            worker.wait_ready()
        except BaseException:
            self._forget(worker)
            worker.kill()
            raise
        return worker

    def _forget(self, worker: _Worker) -> None:
        with self._lock:
            self._running.discard(worker)


_shared: VerdictPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> VerdictPool:
    """Returns the process's own pool, which is closed at exit."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = VerdictPool()
        return _shared


def close_shared_pool() -> None:
    """Ends the shared pool's processes; the next verdict starts new ones."""
    global _shared
    with _shared_lock:
        pool, _shared = _shared, None
    if pool is not None:
        pool.close()


def _forget_after_fork() -> None:
    """A forked child must neither talk to its parent's workers nor kill them."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close_shared_pool)
os.register_at_fork(after_in_child=_forget_after_fork)
