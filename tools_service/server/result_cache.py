"""At most once: a request id is executed once, and asked again it gets the same answer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tools_service.proto import tools_pb2 as pb

_RETRYABLE = frozenset({pb.UNAVAILABLE, pb.MISSING_IMAGES, pb.STATUS_UNSPECIFIED})


class Answers:
    """Answers under way and answers given. Old answers are let go, their ids are kept much longer.

    A key is the principal of the caller with the request id: nobody is given another's answer.
    """

    def __init__(self, max_bytes: int = 128 << 20, max_ids: int = 200_000):
        self._under_way: dict[str, asyncio.Task] = {}
        self._stopped: set[str] = set()
        self._given: OrderedDict[str, pb.Result] = OrderedDict()
        self._spent: OrderedDict[str, None] = OrderedDict()
        self._bytes, self._max_bytes, self._max_ids = 0, max_bytes, max_ids

    async def once(self, key: str, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        """The answer to this request. Canceling the caller does not stop the execution: somebody may ask again."""
        if (given := self._given.get(key)) is not None:
            return given
        if key in self._spent:
            return pb.Result(
                request_id=request_id, status=pb.REFUSED, message="already executed; its answer is no longer held"
            )
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._run(key, request_id, execute))
        return await asyncio.shield(task)

    async def _run(self, key: str, request_id: str, execute: Callable[[], Awaitable[pb.Result]]) -> pb.Result:
        try:
            result = await execute()
        except asyncio.CancelledError:  # by ``stop`` or ``drain``, and there is nobody else who could
            result = pb.Result(request_id=request_id, status=pb.CANCELLED, message="the cell was stopped")
        except Exception as error:
            result = pb.Result(
                request_id=request_id, status=pb.UNAVAILABLE, message=f"internal error: {type(error).__name__}: {error}"
            )
        finally:
            self._under_way.pop(key, None)
        if key in self._stopped:
            self._stopped.discard(key)
            result.status = pb.CANCELLED
            result.message = "the cell was stopped because its caller went away; it may have run in part"
        if result.status not in _RETRYABLE:
            self._keep(key, result)
        return result

    def _keep(self, key: str, result: pb.Result) -> None:
        self._given[key] = result
        self._bytes += result.ByteSize()
        while self._bytes > self._max_bytes and len(self._given) > 1:
            old_key, old = self._given.popitem(last=False)
            self._bytes -= old.ByteSize()
            self._spent[old_key] = None
        while len(self._given) + len(self._spent) > self._max_ids and self._spent:
            self._spent.popitem(last=False)

    async def stop(self, key: str, interrupt: Callable[[], bool], grace_s: float) -> bool:
        """Stops an execution: ``interrupt`` first, which says whether there was something to interrupt, then by
        canceling it. False if there is none."""
        task = self._under_way.get(key)
        if task is None or task.done():
            return False
        self._stopped.add(key)
        if interrupt():
            await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            task.cancel()
        return True

    async def drain(self, timeout_s: float) -> None:
        """Waits for everything under way, at most so long, then cancels the rest."""
        tasks = set(self._under_way.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
