"""Runs the local calls of tools in threads of the trainer, next to a client of the tools service."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Sequence

from dv2_jax.agent.tools.base import LocalCall, LocalOutput
from dv2_jax.rollout.tools_outage import OutageMonitor
from tools_service.client import Request, Status, ToolResult, ToolsClient

THREADS = 16
_POLL_S = 0.005  # interval at which both sources of results are asked while the caller waits


class LocalCallRunner:
    """A tools client that runs `LocalCall`s itself and passes every other request to `client`.

    Threads start with the first local call. They are daemons: a call that never returns occupies one of `THREADS`,
    and does not keep the process from ending.
    """

    def __init__(self, client: ToolsClient | OutageMonitor):
        self.client = client
        self._calls: queue.SimpleQueue[LocalCall] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[ToolResult] = queue.SimpleQueue()
        self._pending = 0  # local calls without a polled result
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str | Sequence[str]:
        return self.client.address

    def submit(self, requests: Sequence[Request | LocalCall]) -> None:
        """Starts requests without waiting; each of them yields exactly one result from `poll`."""
        local = [request for request in requests if isinstance(request, LocalCall)]
        remote = [request for request in requests if not isinstance(request, LocalCall)]
        if remote:
            self.client.submit(remote)
        if local and not self._threads:
            self._threads = [threading.Thread(target=self._work, name="tool-call", daemon=True) for _ in range(THREADS)]
            for thread in self._threads:
                thread.start()
        self._pending += len(local)
        for call in local:
            self._calls.put(call)

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        """Returns the results that have arrived; waits up to `timeout_s` for the first."""
        deadline = time.monotonic() + timeout_s
        while True:
            results = self._local_results()
            left = deadline - time.monotonic()
            wait = min(left, _POLL_S) if self._pending else left
            results += self.client.poll(max(0.0, wait) if not results else 0.0)
            if results or left <= 0:
                return results

    def _local_results(self) -> list[ToolResult]:
        results: list[ToolResult] = []
        while not self._results.empty():
            results.append(self._results.get())
        self._pending -= len(results)
        return results

    def pending(self) -> int:
        """Returns the number of submitted requests whose results have not been polled."""
        return self._pending + self.client.pending()

    def close_sessions(self, ids: Sequence[str]) -> None:
        self.client.close_sessions(ids)

    def info(self) -> dict:
        return self.client.info()

    def close(self) -> None:
        self.client.close()

    def _work(self) -> None:
        while True:
            self._results.put(run_local_call(self._calls.get()))


def run_local_call(call: LocalCall) -> ToolResult:
    """Runs one call; its exception becomes a result with status ERROR, and a warning, since the tool may be at fault."""
    started = time.perf_counter()
    try:
        output = call.function()
        if not isinstance(output, LocalOutput):
            raise TypeError(f"the function of a LocalCall returned {type(output).__name__}, not LocalOutput")
    except Exception as error:
        warnings.warn(f"tool {call.kind!r} failed: {type(error).__name__}: {error}", stacklevel=1)
        output = LocalOutput(status=Status.ERROR, message=f"{type(error).__name__}: {error}")
    return ToolResult(
        call.request_id, call.kind, output.status, output.text, images=output.images, message=output.message,
        wall_ms=1000 * (time.perf_counter() - started),
    )  # fmt: skip
