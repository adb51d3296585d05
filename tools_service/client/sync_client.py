"""The synchronous, thread-safe client of the tools service, which runs `AsyncToolsClient` in a background thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Literal

import grpc

from tools_service.client.async_client import AsyncToolsClient
from tools_service.client.messages import (
    Request,
    ToolResult,
)
from tools_service.client.replicas import Tls


class ToolsClient:
    """Submits requests and collects results in order of completion. All methods may be called from any thread."""

    def __init__(
        self,
        address: str | Sequence[str],
        token: str | None = None,
        tls: Tls | None = None,
        image_format: Literal["png", "webp"] = "png",
        request_timeout_s: float = float("inf"),
    ):
        """Connects lazily: if no service listens, the first result is UNAVAILABLE.

        Args:
            address: host:port, comma-separated for several replicas.
            request_timeout_s: time limit of a request with its retries, after which it ends as UNAVAILABLE.

        Raises:
            ValueError: the address is malformed.
            OSError: a certificate cannot be read.
        """
        self.address = address
        self._results: queue.SimpleQueue[ToolResult] = queue.SimpleQueue()
        self._pending = 0
        self._count = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tools-client", daemon=True)
        self._thread.start()
        self._client = AsyncToolsClient(address, token, tls, image_format, request_timeout_s)
        try:
            self._run_sync(self._client.replicas())
        except (ValueError, OSError):
            self.close()
            raise

    def submit(self, requests: Sequence[Request]) -> None:
        """Sends requests without waiting; each of them yields exactly one result from `poll`."""
        if self._closed:
            raise RuntimeError("the client is closed")
        requests = list(requests)
        if len({request.request_id for request in requests}) < len(requests):
            raise ValueError("two requests of this call have the same request_id: a request is answered once")
        with self._count:
            self._pending += len(requests)

        async def run() -> None:
            async for result in self._client.run(requests):
                self._results.put(result)

        if requests:
            asyncio.run_coroutine_threadsafe(run(), self._loop)

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        """Returns the results that have arrived, in order of completion; waits up to `timeout_s` for the first."""
        results: list[ToolResult] = []
        try:
            results.append(self._results.get(block=timeout_s > 0, timeout=timeout_s or None))
            while True:
                results.append(self._results.get_nowait())
        except queue.Empty:
            pass
        with self._count:
            self._pending -= len(results)
        return results

    def pending(self) -> int:
        """Returns the number of submitted requests whose results have not been polled."""
        with self._count:
            return self._pending

    def close_sessions(self, ids: Iterable[str]) -> None:
        """Ends sessions without waiting. Unknown ids are ignored."""
        ids = list(ids)
        if ids and not self._closed:
            asyncio.run_coroutine_threadsafe(self._client.close_sessions(ids), self._loop)

    def interrupt(self, session_id: str) -> bool:
        """Interrupts the running cell of a session; returns False if none runs."""
        return self._run_sync(self._client.interrupt(session_id))

    def info(self) -> dict:
        """Returns tier, limits, providers, packages and counters of the service. Raises ConnectionError."""
        try:
            return self._run_sync(self._client.info())
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(f"tools service at {self.address}: {error.code().name}: {error.details()}") from None

    def close(self) -> None:
        """Closes the connection; results that have not arrived are lost."""
        if self._closed:
            return
        self._closed = True

        async def finish() -> None:
            await self._client.close()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _run_sync(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
