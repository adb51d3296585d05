"""Starts a local service on loopback as a child process that ends with this one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_START_TIMEOUT_S = 300.0  # libraries load in seconds, on an overloaded machine in minutes


@dataclass(frozen=True)
class LocalService:
    address: str  # host:port
    process: subprocess.Popen
    banner: tuple[str, ...]  # lines that the service printed at startup

    def stop(self, timeout_s: float = 20.0) -> None:
        """Ends the service and its sessions; kills it after `timeout_s`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            with contextlib.suppress(OSError):
                self.process.stdout.close()


def start_local_service(
    *,
    text_index: str | Path = "",
    image_index: str | Path = "",
    log_path: str | Path,
    extra_args: Sequence[str] = (),
    launcher: Sequence[str] = (),
) -> LocalService:
    """Starts `python -m tools_service` on a free loopback port and waits until it listens.

    Args:
        log_path: file for its log (stderr).
        extra_args: further options of the service.
        launcher: command to prefix, which runs the service as another user or in a container.

    Raises:
        RuntimeError: it did not start; the message ends with the end of the log.
    """
    command = [*launcher, sys.executable, "-m", "tools_service", "--exit-with-parent"]
    command += ["--text-index", str(text_index)] if text_index else []
    command += ["--image-index", str(image_index)] if image_index else []
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)}
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [*command, *extra_args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None  # a pipe
    banner: list[str] = []
    for line in _read_lines(process.stdout.fileno(), time.monotonic() + _START_TIMEOUT_S):
        banner.append(line)
        if line.startswith("listening on "):
            return LocalService(line.removeprefix("listening on ").strip(), process, tuple(banner))
    process.kill()
    process.wait()
    process.stdout.close()
    tail = Path(log_path).read_text(errors="replace")[-3000:]
    raise RuntimeError(f"the tools service did not start (exit {process.returncode}); end of {log_path}:\n{tail}")


def _read_lines(output: int, deadline: float) -> Iterator[str]:
    """Yields the lines of a process's output pipe until it ends or the deadline passes."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(timeout=0.5):
                continue
            part = os.read(output, 4096)
            if not part:
                return
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
