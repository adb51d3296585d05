"""At most once: a request id is executed once, and asked again it gets the same answer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tools_service.proto import tools_pb2 as pb

_RETRYABLE = frozenset({pb.UNAVAILABLE, pb.MISSING_IMAGES, pb.STATUS_UNSPECIFIED})


class Answers:
    """Answers under way and answers given. Old answers are let go, their ids are kept much longer."""

    def __init__(self, max_bytes: int = 128 << 20, max_ids: int = 200_000):
        self._under_way: dict[str, asyncio.Task] = {}
        self._given: OrderedDict[str, pb.Result] = OrderedDict()
        self._spent: OrderedDict[str, None] = OrderedDict()
        self._bytes, self._max_bytes, self._max_ids = 0, max_bytes, max_ids

    async def once(self, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        """The answer to this request. Cancelling the caller does not stop the execution: somebody may ask again."""
        if (given := self._given.get(request_id)) is not None:
            return given
        if request_id in self._spent:
            return pb.Result(
                request_id=request_id, status=pb.REFUSED, message="already executed; its answer is no longer held"
            )
        task = self._under_way.get(request_id)
        if task is None:
            task = self._under_way[request_id] = asyncio.create_task(self._run(request_id, execute))
        return await asyncio.shield(task)

    async def _run(self, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        try:
            result = await execute()
        except Exception as error:
            result = pb.Result(
                request_id=request_id, status=pb.UNAVAILABLE, message=f"internal error: {type(error).__name__}: {error}"
            )
        finally:
            self._under_way.pop(request_id, None)
        if result.status not in _RETRYABLE:
            self._keep(request_id, result)
        return result

    def _keep(self, request_id: str, result: pb.Result) -> None:
        self._given[request_id] = result
        self._bytes += result.ByteSize()
        while self._bytes > self._max_bytes and len(self._given) > 1:
            old_id, old = self._given.popitem(last=False)
            self._bytes -= old.ByteSize()
            self._spent[old_id] = None
        while len(self._spent) > self._max_ids:
            self._spent.popitem(last=False)

    def task(self, request_id: str) -> asyncio.Task | None:
        """The execution of this request, if it is under way."""
        return self._under_way.get(request_id)

    async def drain(self, timeout_s: float) -> None:
        """Waits for everything under way, at most so long, then cancels the rest."""
        tasks = set(self._under_way.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
