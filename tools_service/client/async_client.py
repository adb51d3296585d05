"""The asyncio client: assigns sessions to replicas, sends batches with retries, yields one result per request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Literal

import grpc

from tools_service.client import messages
from tools_service.client.messages import ExecRequest, Request, Status, ToolResult
from tools_service.client.replicas import Replica, Tls, resolve_addresses
from tools_service.proto import tools_pb2 as pb

_ATTEMPTS = 4
_BACKOFF_S = 0.3
_FATAL_CODES = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class AsyncToolsClient:
    """Client of one or several replicas; bound to the event loop that first uses it.

    A session is opened on the least loaded replica and stays there. When its replica ends, the session is
    reported as lost; sessions without a cell yet, and searches, are sent to another replica.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        token: str | None = None,
        tls: Tls | None = None,
        image_format: Literal["png", "webp"] = "png",
        request_timeout_s: float = float("inf"),
    ):
        """Does not connect yet.

        Args:
            addresses: host:port of each replica, comma-separated or as a sequence.
            request_timeout_s: time limit of a request with its retries, after which it ends as UNAVAILABLE.
        """
        self._addresses, self._token, self._tls = addresses, token, tls
        self._format, self._request_timeout_s = image_format, request_timeout_s
        self._replicas: list[Replica] = []
        self._connecting: asyncio.Lock | None = None
        self._session_replica: dict[str, Replica] = {}  # by session id
        self._wire_ids: dict[str, str] = {}  # session id → its id on the wire, which names the replica
        self._started_sessions: set[str] = set()  # sessions in which a cell has run: their state can be lost

    async def replicas(self) -> list[Replica]:
        """Returns the replicas, resolved at the first call. Raises ValueError (address) or OSError (certificate)."""
        if not self._replicas:
            self._connecting = self._connecting or asyncio.Lock()
            async with self._connecting:
                if not self._replicas:
                    found = await resolve_addresses(self._addresses)
                    self._replicas = [Replica(address, name, self._token, self._tls) for address, name in found]
        return self._replicas

    async def run(self, requests: Sequence[Request]) -> AsyncIterator[ToolResult]:
        """Yields exactly one result per request, in order of completion. Cells of one session run in order."""
        results: asyncio.Queue[ToolResult] = asyncio.Queue()
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        searches = [r for r in requests if not isinstance(r, ExecRequest)]
        batches = [*messages.split_batches(cells), *messages.split_batches(searches)]
        tasks = [asyncio.create_task(self._run_batch(batch, results)) for batch in batches]
        try:
            for _ in requests:
                yield await results.get()
        finally:
            for task in tasks:
                task.cancel()

    async def close_sessions(self, ids: Iterable[str]) -> None:
        """Ends sessions. Unknown ids are ignored."""
        by_replica: dict[Replica, list[str]] = {}
        for session in ids:
            replica, name = self._session_replica.pop(session, None), self._wire_ids.pop(session, session)
            self._started_sessions.discard(session)
            if replica is not None:
                by_replica.setdefault(replica, []).append(name)
        for replica, names in by_replica.items():
            await replica.close_sessions(names)

    async def interrupt(self, session: str) -> bool:
        """Interrupts the running cell of a session; returns False if none runs. Raises AioRpcError."""
        replica = self._session_replica.get(session)
        return replica is not None and await replica.interrupt(self._wire_ids[session])

    async def info(self) -> dict:
        """Returns tier, limits, providers, packages and counters of the first replica. Raises AioRpcError."""
        return await (await self.replicas())[0].info()

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()

    # One batch

    async def _run_batch(self, batch: list[Request], results: asyncio.Queue[ToolResult]) -> None:
        """Sends the batch until every request has a result, or the attempts or the time are used up."""
        waiting = {request.request_id: request for request in batch}
        errors = ["no answer"]
        try:
            async with asyncio.timeout(self._request_timeout_s if self._request_timeout_s < float("inf") else None):
                await self._run_attempts(waiting, results, errors)
        except TimeoutError:
            errors.append(f"no answer within {self._request_timeout_s:g} s ({errors[-1]})")
        except Exception as error:  # a request that cannot be serialized must still get its result
            errors.append(f"{type(error).__name__}: {error}")
        for request in waiting.values():
            results.put_nowait(self._undelivered(request, errors[-1]))

    async def _run_attempts(self, waiting: dict[str, Request], results: asyncio.Queue, errors: list[str]) -> None:
        missing_digests: set[bytes] = set()
        for attempt in range(_ATTEMPTS):
            parts = await self._route(list(waiting.values()), errors)
            final = await asyncio.gather(*(
                self._send_batch(replica, part, waiting, missing_digests, results, errors, attempt + 1 == _ATTEMPTS)
                for replica, part in parts.items()
            ))  # fmt: skip
            if not waiting or any(final):
                return
            if not missing_digests or attempt:
                await asyncio.sleep(_BACKOFF_S * 2**attempt * random.uniform(0.75, 1.25))

    async def _route(self, requests: list[Request], errors: list[str]) -> dict[Replica, list[Request]]:
        """Groups requests by replica; those for which no replica is available now are left out."""
        parts: dict[Replica, list[Request]] = {}
        for request in requests:
            session = request.session_id if isinstance(request, ExecRequest) else None
            replica = before = self._session_replica.get(session) if session is not None else None
            if replica is None or (
                session not in self._started_sessions and (replica.down_until > time.monotonic() or not replica.name)
            ):
                replica = await self._least_loaded(errors)
                if replica is None:
                    continue
                if session is not None and self._session_replica.get(session) is not before:
                    replica = self._session_replica[session]  # another batch with this session was first
                elif session is not None:
                    replica.new_sessions += 1
                    self._session_replica[session], self._wire_ids[session] = replica, f"{session}@{replica.name}"
            parts.setdefault(replica, []).append(request)
        return parts

    async def _least_loaded(self, errors: list[str]) -> Replica | None:
        """Returns the least loaded replica that responds; None if none does."""
        now = time.monotonic()
        replicas = await self.replicas()
        if len(replicas) == 1 and replicas[0].name:
            return replicas[0]
        candidates = [r for r in replicas if r.down_until <= now] if len(replicas) > 1 else replicas

        async def refreshed(replica: Replica) -> Replica | None:
            try:
                await replica.refresh()
            except grpc.aio.AioRpcError as error:
                errors.append(f"{replica.address}: {_format_error(error)}")
                replica.mark_down()
                return None
            return replica

        answered = [r for r in await asyncio.gather(*map(refreshed, candidates)) if r is not None]
        return min(answered, key=lambda r: (r.load, random.random()), default=None)

    async def _send_batch(
        self, replica: Replica, requests: list[Request], waiting: dict[str, Request], missing_digests: set[bytes],
        results: asyncio.Queue, errors: list[str], last: bool,
    ) -> bool:  # fmt: skip
        """Makes one call and removes answered requests from `waiting`. Returns True if a retry is useless."""
        cells = [r for r in requests if isinstance(r, ExecRequest)]
        wire_ids = {r.request_id: (self._wire_ids[r.session_id], r.session_id in self._started_sessions) for r in cells}
        try:
            async for reply in replica.send_batch(
                requests, wire_ids, missing_digests, self._format, self._request_timeout_s
            ):
                request = waiting.get(reply.request_id)
                if request is None:
                    continue
                if reply.status == pb.MISSING_IMAGES:
                    missing_digests.update(reply.missing_digests)
                    errors.append("the service no longer holds the images")
                elif reply.status == pb.UNAVAILABLE and not last:
                    errors.append(reply.message)
                elif reply.status == pb.SESSION_LOST and not wire_ids[reply.request_id][1] and not last:
                    replica.forget_name()  # no state is lost: the replica was restarted before the first cell of the session
                else:
                    del waiting[reply.request_id]
                    results.put_nowait(self._record_result(request, messages.from_proto(request, reply)))
        except grpc.aio.AioRpcError as error:
            errors.append(_format_error(error))
            if error.code() in _FATAL_CODES:
                return True
            replica.mark_down()
        return False

    def _record_result(self, request: Request, result: ToolResult) -> ToolResult:
        if isinstance(request, ExecRequest):
            if result.status is Status.SESSION_LOST:
                self._forget_session(request.session_id)
            elif result.status not in (Status.REFUSED, Status.UNAVAILABLE):
                self._started_sessions.add(request.session_id)
        return result

    def _undelivered(self, request: Request, error: str) -> ToolResult:
        """Returns the result of a request without an answer: SESSION_LOST if its session's replica is down."""
        if (
            isinstance(request, ExecRequest)
            and request.session_id in self._started_sessions
            and len(self._replicas) > 1
        ):
            replica = self._session_replica[request.session_id]
            if replica.down_until > time.monotonic():
                self._forget_session(request.session_id)
                return messages.failed_result(
                    request, Status.SESSION_LOST, f"its replica {replica.address} is gone: {error}"
                )
        return messages.failed_result(request, Status.UNAVAILABLE, error)

    def _forget_session(self, session: str) -> None:
        self._started_sessions.discard(session)
        self._session_replica.pop(session, None)
        self._wire_ids.pop(session, None)


def _format_error(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
