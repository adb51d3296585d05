"""Runs a program as several JAX processes on this machine, one per host."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 1800.0  # a guard against processes that wait for each other without end


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yields a port of the loopback interface that no other process is given while the context is open.

    The coordinator of JAX, a gRPC server, listens with SO_REUSEPORT, so it can share the port with this socket.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run_on_hosts(command: Sequence[str], *, hosts: int = 2, devices_each: int = 1) -> list[str]:
    """Runs `command` as `hosts` processes until all have ended; returns what each wrote to standard output.

    The first failure ends the others, which would wait for it in a collective.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
            "PYTHONPATH": str(ROOT),
        }
        if hosts > 1:
            address = f"127.0.0.1:{stack.enter_context(reserved_port())}"
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
        running: list[subprocess.Popen] = []
        try:
            for index in range(hosts):
                out, errors = (stack.enter_context(open(folder / f"{index}.{name}", "w")) for name in ("out", "err"))
                own = environment | ({"JAX_PROCESS_ID": str(index)} if hosts > 1 else {})
                running.append(subprocess.Popen(command, env=own, stdout=out, stderr=errors, cwd=ROOT))
            started = time.monotonic()
            while {process.poll() for process in running} <= {None, 0} and any(p.poll() is None for p in running):
                assert time.monotonic() - started < HANG_S, "the processes wait for each other"
                time.sleep(0.05)
        finally:
            for process in running:
                process.kill()
        codes = [process.wait() for process in running]
        errors = [(folder / f"{index}.err").read_text()[-6000:] for index in range(hosts)]
        assert codes == [0] * hosts, "\n".join([str(codes), *errors])
        return [(folder / f"{index}.out").read_text() for index in range(hosts)]
