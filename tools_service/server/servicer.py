"""The gRPC servicer: validates requests, deduplicates them by id and streams results. It never forks."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass

import grpc

from tools_service import __version__
from tools_service.common import logs
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.sandbox.manager.manager_client import SandboxManagerClient
from tools_service.search.service import SearchProviders
from tools_service.server import auth
from tools_service.server.admission import AdmissionController
from tools_service.server.cell_executor import CallContext, CellExecutor
from tools_service.server.image_store import ImageStore
from tools_service.server.options import ServiceOptions
from tools_service.server.request_decoder import DecodedRequest
from tools_service.server.result_cache import IdempotencyCache
from tools_service.server.server_metrics import ServiceMetrics
from tools_service.server.session_janitor import SessionJanitor
from tools_service.server.sessions import SessionRegistry
from tools_service.server.tracing import Tracing

_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,200}")
_ABANDON_GRACE_S = 2.0  # how long a cell keeps running after its call was canceled: the request may be repeated
_MAX_BATCH_ITEMS = 4096
_MAX_QUERY_CHARS = 4096


# The policy reads the messages of refused requests: released weights have seen these texts.
class InvalidRequest(Exception):
    """The request violates a limit or the format; the text, which becomes the result's message, says which."""


@dataclass(frozen=True)
class Sandbox:
    """The parts of the server that run cells."""

    manager: SandboxManagerClient
    sessions: SessionRegistry
    executor: CellExecutor
    janitor: SessionJanitor


class ToolsService(tools_pb2_grpc.ToolsServicer):
    """Implements the service `Tools` of tools.proto."""

    def __init__(
        self,
        options: ServiceOptions,
        sandbox: Sandbox | None,
        providers: SearchProviders,
        admission: AdmissionController,
    ):
        self._options, self._sandbox, self._providers = options, sandbox, providers
        self._idempotency_cache, self._image_store, self._admission = IdempotencyCache(), ImageStore(), admission
        self.replica = f"{options.replica}-{secrets.token_hex(4)}"
        self.metrics, self.tracing = self._make_metrics(), Tracing.open(options.traces)
        self._started = time.time()
        self._abandoned = 0
        self._stopping: set[asyncio.Task] = set()
        self.draining = False

    async def Exec(self, request: DecodedRequest, context: grpc.aio.ServicerContext) -> pb.Result:
        call, item = _call_context(context), request.message
        self._cache_images(item.images, call)
        results = self._stream_results("exec", [item], request.faults, self._exec_handler, call, context)
        async with contextlib.aclosing(results):
            return await anext(results)

    async def BatchExec(self, request: DecodedRequest, context: grpc.aio.ServicerContext) -> None:
        call, batch = _call_context(context), request.message
        await self._check_batch_size(len(batch.items), context)
        self._cache_images(batch.images, call)
        for item in batch.items:
            self._cache_images(item.images, call)
        await self._write_results("exec", request, self._exec_handler, call, context)

    async def BatchSearch(self, request: DecodedRequest, context: grpc.aio.ServicerContext) -> None:
        await self._check_batch_size(len(request.message.items), context)
        await self._write_results("search", request, self._search_handler, _call_context(context), context)

    async def Interrupt(self, request: pb.InterruptRequest, context: grpc.aio.ServicerContext) -> pb.InterruptReply:
        running = self._sandbox is not None and self._sandbox.executor.interrupt_cell(
            request.session_id, auth.principal(context)
        )
        return pb.InterruptReply(interrupted=running)

    async def CloseSessions(
        self, request: pb.CloseSessionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseSessionsReply:
        if self._sandbox is None:
            return pb.CloseSessionsReply()
        principal, sessions = auth.principal(context), self._sandbox.sessions
        return pb.CloseSessionsReply(closed=sum(sessions.close(id_, principal) for id_ in request.session_ids))

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.Info:
        info = self.info()
        return pb.Info(version=__version__, tier=info["tier"], json=json.dumps(info))

    def info(self) -> dict:
        """Returns version, isolation, limits, providers, load and counters as plain JSON data."""
        confinement = self._sandbox.manager.info if self._sandbox else {}
        config = confinement.get("config", {})
        return {
            "version": __version__,
            "replica": self.replica,
            "tier": config.get("tier", "no sandbox"),
            "isolation": confinement.get("summary", ""),
            "limits": config.get("limits", {}),
            "enforced_by": confinement.get("enforced_by", {}),
            "limits_text": confinement.get("limits", ""),
            "packages": confinement.get("packages", {}),
            "providers": self._providers.chain_descriptions(),
            "search": self._providers.provider_states(),
            "runtime_dir": config.get("runtime_dir", ""),
            "max_sessions": self._options.max_sessions,
            "sessions": self._session_count(),
            "running": self._admission.running,
            "waiting": self._queued_count(),
            "draining": self.draining,
            "counters": self._counters(),
            "uptime_s": time.time() - self._started,
        }

    def _session_count(self) -> int:
        return 0 if self._sandbox is None else len(self._sandbox.sessions)

    def _queued_count(self) -> int:
        return 0 if self._sandbox is None else self._sandbox.sessions.queued

    def _counters(self) -> dict[str, int]:
        return ({} if self._sandbox is None else self._sandbox.sessions.counters) | {"abandoned": self._abandoned}

    def _make_metrics(self) -> ServiceMetrics:
        metrics = ServiceMetrics()
        metrics.gauge("tools_sessions", "Sessions that live", self._session_count)
        metrics.gauge("tools_cells_running", "Cells that run", lambda: self._admission.running)
        metrics.gauge("tools_cells_waiting", "Cells that wait or run", self._queued_count)
        events = ("cells", "opened", "expired", "evicted", "killed", "abandoned")
        metrics.counters("tools_events", "What happened since the start", self._counters, events)
        return metrics

    async def run_janitor(self) -> None:
        """Background task: expires and evicts sessions until it is canceled."""
        if self._sandbox is not None:
            await self._sandbox.janitor.run()

    async def drain(self) -> None:
        """Refuses new requests and waits for those in flight."""
        self.draining = True
        await self._idempotency_cache.drain(self._options.drain_s)

    async def close(self) -> None:
        """Closes the search providers' connections and flushes the last spans."""
        await self._providers.close()
        await asyncio.to_thread(self.tracing.close)

    # Handlers of one item

    def _exec_handler(
        self, request: pb.ExecRequest, call: CallContext
    ) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            self._validate_exec(request)
            images = [self._image_store.get(call.principal, digest) for digest in request.image_digests]
            missing = [d for d, data in zip(request.image_digests, images, strict=True) if data is None]
            if missing:
                return pb.Result(request_id=request.request_id, status=pb.MISSING_IMAGES, missing_digests=missing)
            assert self._sandbox is not None  # or the request is invalid
            present = [image for image in images if image is not None]
            return await self._sandbox.executor.execute(request, present, call)

        return execute

    def _validate_exec(self, request: pb.ExecRequest) -> None:
        limits = self._options.limits
        if self._sandbox is None:
            raise InvalidRequest("this service runs without a sandbox")
        if not _ID.fullmatch(request.session_id):
            raise InvalidRequest(f"session id {request.session_id[:80]!r} must match {_ID.pattern}")
        if len(request.code.encode("utf-8", "replace")) > limits.code_kb << 10:
            raise InvalidRequest(f"the code has {len(request.code)} characters; the limit is {limits.code_kb} KB")
        if not 0 <= request.timeout_s <= limits.max_timeout_s:
            raise InvalidRequest(f"timeout_s {request.timeout_s:g} must be between 0 and {limits.max_timeout_s:g}")
        if len(request.image_digests) > limits.input_images:
            raise InvalidRequest(f"{len(request.image_digests)} pictures; the limit is {limits.input_images}")
        if request.image_format not in pb.ImageFormat.values():
            known = ", ".join(f"{number} ({name})" for name, number in pb.ImageFormat.items())
            raise InvalidRequest(f"image_format {request.image_format} is unknown; the formats are {known}")

    def _search_handler(
        self, request: pb.SearchRequest, _: CallContext
    ) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            kind = request.WhichOneof("query")
            if kind is None:
                raise InvalidRequest("a search needs a text or an image")
            if not 1 <= request.k <= 100:
                raise InvalidRequest(f"k {request.k} must be between 1 and 100")
            if kind == "text" and len(request.text.query) > _MAX_QUERY_CHARS:
                raise InvalidRequest(
                    f"the query has {len(request.text.query)} characters; the limit is {_MAX_QUERY_CHARS}"
                )
            if kind == "image" and len(request.image.image) > self._options.limits.input_image_mb << 20:
                raise InvalidRequest(f"the picture has more than {self._options.limits.input_image_mb} MB")
            return await self._providers.search(request)

        return execute

    # Batches

    async def _write_results(
        self, kind: str, request: DecodedRequest, make: Callable, call: CallContext, context: grpc.aio.ServicerContext
    ) -> None:
        """Writes the results of a batch in order of completion."""
        results = self._stream_results(kind, request.message.items, request.faults, make, call, context)
        # Closed here and not by garbage collection: a caller that goes away is noticed, and logged, at once.
        async with contextlib.aclosing(results):
            async for result in results:
                await context.write(result)

    async def _stream_results(
        self,
        kind: str,
        items,
        faults: Mapping[int, str],
        make: Callable,
        call: CallContext,
        context: grpc.aio.ServicerContext,
    ) -> AsyncGenerator[pb.Result, None]:
        """Yields results in order of completion. `faults` names the items that could not be decoded.

        If the caller goes away, cells in flight are stopped after `_ABANDON_GRACE_S`. The generator must be closed
        (`contextlib.aclosing`): that stops them, ends the span and writes the log line.
        """
        started, statuses = time.monotonic(), collections.Counter[str]()
        with self.tracing.span(kind, context.invocation_metadata()) as attributes:
            tasks = [
                asyncio.create_task(
                    self._run_item(kind, item, _refuse(faults[i]) if i in faults else make(item, call), call)
                )
                for i, item in enumerate(items)
            ]
            try:
                for next_done in asyncio.as_completed(tasks):
                    result = await next_done
                    statuses[pb.Status.Name(result.status)] += 1
                    yield result
            finally:
                left = sum(not task.done() for task in tasks)
                if left:
                    for task in tasks:
                        task.cancel()
                    loop = asyncio.get_running_loop()
                    for item in items:
                        loop.call_later(_ABANDON_GRACE_S, self._stop_abandoned, item, call)
                attributes.update(items=len(tasks), abandoned=left, **statuses)
                seconds = round(time.monotonic() - started, 4)
                logs.event(kind, items=len(tasks), abandoned=left, statuses=dict(statuses), seconds=seconds)

    async def _run_item(
        self, kind: str, item: pb.ExecRequest | pb.SearchRequest, execute: Callable, call: CallContext
    ) -> pb.Result:
        if isinstance(item, pb.ExecRequest) and item.session_id.partition("@")[2] not in ("", self.replica):
            # Not stored under the idempotency key: the client may repeat the request with a session of this replica.
            message = "the session belongs to another replica, or to this one before it was restarted"
            result = pb.Result(request_id=item.request_id, status=pb.SESSION_LOST, message=message)
        else:
            result = await self._execute_once(item.request_id, execute, call)
        self.metrics.record_result(kind, result)
        return result

    async def _execute_once(self, request_id: str, execute: Callable, call: CallContext) -> pb.Result:
        if not _ID.fullmatch(request_id):
            return pb.Result(request_id=request_id, status=pb.REFUSED, message=f"request id must match {_ID.pattern}")
        if self.draining:
            return pb.Result(request_id=request_id, status=pb.UNAVAILABLE, message="the service is shutting down")

        async def checked() -> pb.Result:
            try:
                return await execute()
            except InvalidRequest as error:
                return pb.Result(request_id=request_id, status=pb.REFUSED, message=str(error))

        return await self._idempotency_cache.get_or_run(call.scoped_key(request_id), request_id, checked)

    def _stop_abandoned(self, item: pb.ExecRequest | pb.SearchRequest, call: CallContext) -> None:
        def interrupt() -> bool:
            if self._sandbox is None or not isinstance(item, pb.ExecRequest):
                return False
            return self._sandbox.executor.interrupt_cell(item.session_id, call.principal, item.request_id)

        async def stop() -> None:
            grace = self._options.limits.grace_s
            self._abandoned += await self._idempotency_cache.cancel(call.scoped_key(item.request_id), interrupt, grace)

        task = asyncio.ensure_future(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def _cache_images(self, images, call: CallContext) -> None:
        limit = self._options.limits.input_image_mb << 20
        for data in images:
            if len(data) <= limit:
                self._image_store.add(call.principal, data)

    async def _check_batch_size(self, items: int, context: grpc.aio.ServicerContext) -> None:
        if items > _MAX_BATCH_ITEMS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{items} items in a batch; the limit is {_MAX_BATCH_ITEMS}"
            )


def _call_context(context: grpc.aio.ServicerContext) -> CallContext:
    left = context.time_remaining()
    return CallContext(auth.principal(context), math.inf if left is None else time.monotonic() + left)


def _refuse(fault: str) -> Callable[[], Coroutine[None, None, pb.Result]]:
    """Returns the execution of an item that could not be decoded."""

    async def execute() -> pb.Result:
        raise InvalidRequest(fault)

    return execute
