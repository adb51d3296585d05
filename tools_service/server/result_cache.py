"""At-most-once execution: the request id is an idempotency key, and a repeated request gets the stored result."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from tools_service.proto import tools_pb2 as pb

_RETRYABLE = frozenset({pb.UNAVAILABLE, pb.MISSING_IMAGES, pb.STATUS_UNSPECIFIED})


class IdempotencyCache:
    """Executions in flight and results of past ones, by idempotency key.

    Results are evicted oldest first beyond `max_bytes`; their keys are remembered much longer (`max_ids`), so that
    a late repetition is refused and not executed a second time. A key combines the caller's principal with the
    request id: callers never receive each other's results.
    """

    def __init__(self, max_bytes: int = 128 << 20, max_ids: int = 200_000):
        self._in_flight: dict[str, asyncio.Task] = {}
        self._abandoned: set[str] = set()
        self._results: OrderedDict[str, pb.Result] = OrderedDict()
        self._expired_ids: OrderedDict[str, None] = OrderedDict()
        self._bytes, self._max_bytes, self._max_ids = 0, max_bytes, max_ids

    async def get_or_run(self, key: str, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        """Returns the stored result, or joins or starts the execution.

        Canceling the caller does not cancel the execution (`asyncio.shield`): the request may be repeated.
        """
        if (result := self._results.get(key)) is not None:
            return result
        if key in self._expired_ids:
            return pb.Result(
                request_id=request_id, status=pb.REFUSED, message="already executed; its answer is no longer held"
            )
        task = self._in_flight.get(key)
        if task is None:
            task = self._in_flight[key] = asyncio.create_task(self._run(key, request_id, execute))
        return await asyncio.shield(task)

    async def _run(self, key: str, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        started = time.monotonic()
        try:
            result = await execute()
        except asyncio.CancelledError:  # only `cancel` and `drain` cancel this task
            result = pb.Result(request_id=request_id, status=pb.CANCELLED, message="the cell was stopped")
        except Exception as error:
            result = pb.Result(
                request_id=request_id, status=pb.UNAVAILABLE, message=f"internal error: {type(error).__name__}: {error}"
            )
        finally:
            self._in_flight.pop(key, None)
        if key in self._abandoned:
            self._abandoned.discard(key)
            message = "the cell was stopped because its caller went away; it may have run in part"
            result = _replace(result, status=pb.CANCELLED, message=message)
        if not result.wall_ms:
            result = _replace(result, wall_ms=(time.monotonic() - started) * 1e3)
        if result.status not in _RETRYABLE:
            self._store(key, result)
        return result

    def _store(self, key: str, result: pb.Result) -> None:
        self._results[key] = result
        self._bytes += result.ByteSize()
        while self._bytes > self._max_bytes and len(self._results) > 1:
            old_key, old = self._results.popitem(last=False)
            self._bytes -= old.ByteSize()
            self._expired_ids[old_key] = None
        while len(self._results) + len(self._expired_ids) > self._max_ids and self._expired_ids:
            self._expired_ids.popitem(last=False)

    async def cancel(self, key: str, interrupt: Callable[[], bool], grace_s: float) -> bool:
        """Stops an execution: calls `interrupt`, waits `grace_s` if that returned True, then cancels the task.

        Returns False if no execution with this key is in flight.
        """
        task = self._in_flight.get(key)
        if task is None or task.done():
            return False
        self._abandoned.add(key)
        if interrupt():
            await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            task.cancel()
        return True

    async def drain(self, timeout_s: float) -> None:
        """Waits up to `timeout_s` for the executions in flight, then cancels the remaining ones."""
        tasks = set(self._in_flight.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _replace(result: pb.Result, **fields: Any) -> pb.Result:
    """Returns a copy with some fields changed; the size of a stored result must not change."""
    changed = pb.Result()
    changed.CopyFrom(result)
    changed.MergeFrom(pb.Result(**fields))
    return changed
