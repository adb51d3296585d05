"""The gRPC servicer: validates requests, deduplicates them by id and streams results. It never forks."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tools_service import __version__
from tools_service.common import logs
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.sandbox.manager.manager_client import SandboxManagerClient
from tools_service.search.service import SearchProviders
from tools_service.server import auth
from tools_service.server.admission import AdmissionController
from tools_service.server.image_store import ImageStore
from tools_service.server.options import ServiceOptions
from tools_service.server.result_cache import IdempotencyCache
from tools_service.server.server_metrics import ServiceMetrics
from tools_service.server.sessions import CallContext, SessionRegistry
from tools_service.server.tracing import Tracing

MAX_MESSAGE = 64 << 20
_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Tools"].full_name
_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,200}")
_ABANDON_GRACE_S = 2.0  # how long a cell keeps running after its call was canceled: the request may be repeated
_MAX_BATCH_ITEMS = 4096
_MAX_QUERY_CHARS = 4096


# The policy reads the messages of refused requests: released weights have seen these texts.
class InvalidRequest(Exception):
    """The request violates a limit or the format; the text, which becomes the result's message, says which."""


class ToolsService(tools_pb2_grpc.ToolsServicer):
    """Implements the service `Tools` of tools.proto."""

    def __init__(
        self,
        options: ServiceOptions,
        manager: SandboxManagerClient | None,
        sessions: SessionRegistry | None,
        providers: SearchProviders,
        admission: AdmissionController,
    ):
        self._options, self._manager, self._sessions, self._providers = options, manager, sessions, providers
        self._idempotency_cache, self._image_store, self._admission = IdempotencyCache(), ImageStore(), admission
        self.replica = f"{options.replica}-{secrets.token_hex(4)}"
        self.metrics, self.tracing = self._make_metrics(), Tracing.open(options.traces)
        self._started = time.time()
        self._abandoned = 0
        self._stopping: set[asyncio.Task] = set()
        self.draining = False

    async def Exec(self, request: pb.ExecRequest, context: grpc.aio.ServicerContext) -> pb.Result:
        call = _call_context(context)
        self._cache_images(request.images, call)
        async for result in self._stream_results("exec", [request], self._exec_handler, call, context):
            return result

    async def BatchExec(
        self, request: pb.BatchExecRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_batch_size(len(request.items), context)
        call = _call_context(context)
        self._cache_images(request.images, call)
        for item in request.items:
            self._cache_images(item.images, call)
        async for result in self._stream_results("exec", request.items, self._exec_handler, call, context):
            yield result

    async def BatchSearch(
        self, request: pb.BatchSearchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        await self._check_batch_size(len(request.items), context)
        async for result in self._stream_results(
            "search", request.items, self._search_handler, _call_context(context), context
        ):
            yield result

    async def Interrupt(self, request: pb.InterruptRequest, context: grpc.aio.ServicerContext) -> pb.InterruptReply:
        running = self._sessions is not None and self._sessions.interrupt_cell(
            request.session_id, auth.principal(context)
        )
        return pb.InterruptReply(interrupted=running)

    async def CloseSessions(
        self, request: pb.CloseSessionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseSessionsReply:
        if self._sessions is None:
            return pb.CloseSessionsReply()
        principal = auth.principal(context)
        return pb.CloseSessionsReply(
            closed=sum(self._sessions.close_session(id_, principal) for id_ in request.session_ids)
        )

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.Info:
        info = self.info()
        return pb.Info(version=__version__, tier=info["tier"], json=json.dumps(info))

    def info(self) -> dict:
        """Returns version, isolation, limits, providers, load and counters as plain JSON data."""
        sandbox = self._manager.info if self._manager else {}
        config = sandbox.get("config", {})
        return {
            "version": __version__,
            "replica": self.replica,
            "tier": config.get("tier", "no sandbox"),
            "isolation": sandbox.get("summary", ""),
            "limits": config.get("limits", {}),
            "packages": sandbox.get("packages", {}),
            "providers": self._providers.chain_descriptions(),
            "search": self._providers.provider_states(),
            "runtime_dir": config.get("runtime_dir", ""),
            "max_sessions": self._options.max_sessions,
            "sessions": 0 if self._sessions is None else len(self._sessions),
            "running": self._admission.running,
            "waiting": 0 if self._sessions is None else self._sessions.queued,
            "draining": self.draining,
            "counters": self._counters(),
            "uptime_s": time.time() - self._started,
        }

    def _counters(self) -> dict[str, int]:
        return ({} if self._sessions is None else self._sessions.counters) | {"abandoned": self._abandoned}

    def _make_metrics(self) -> ServiceMetrics:
        metrics = ServiceMetrics()
        metrics.gauge(
            "tools_sessions", "Sessions that live", lambda: 0 if self._sessions is None else len(self._sessions)
        )
        metrics.gauge("tools_cells_running", "Cells that run", lambda: self._admission.running)
        metrics.gauge(
            "tools_cells_waiting",
            "Cells that wait or run",
            lambda: 0 if self._sessions is None else self._sessions.queued,
        )
        events = ("cells", "opened", "expired", "evicted", "killed", "abandoned")
        metrics.counters("tools_events", "What happened since the start", self._counters, events)
        return metrics

    async def run_janitor(self) -> None:
        """Background task: expires and evicts sessions until it is canceled."""
        if self._sessions is not None:
            await self._sessions.run_janitor()

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
            return await self._sessions.execute(request, images, call)

        return execute

    def _validate_exec(self, request: pb.ExecRequest) -> None:
        limits = self._options.limits
        if self._sessions is None:
            raise InvalidRequest("this service runs without a sandbox")
        if not _ID.fullmatch(request.session_id):
            raise InvalidRequest(f"session id {request.session_id[:80]!r} must match {_ID.pattern}")
        if len(request.code.encode("utf-8", "replace")) > limits.code_kb << 10:
            raise InvalidRequest(f"the code has {len(request.code)} characters; the limit is {limits.code_kb} KB")
        if not 0 <= request.timeout_s <= limits.max_timeout_s:
            raise InvalidRequest(f"timeout_s {request.timeout_s:g} must lie between 0 and {limits.max_timeout_s:g}")
        if len(request.image_digests) > limits.input_images:
            raise InvalidRequest(f"{len(request.image_digests)} pictures; the limit is {limits.input_images}")

    def _search_handler(
        self, request: pb.SearchRequest, _: CallContext
    ) -> Callable[[], Coroutine[None, None, pb.Result]]:
        async def execute() -> pb.Result:
            kind = request.WhichOneof("query")
            if kind is None:
                raise InvalidRequest("a search needs a text or an image")
            if not 1 <= request.k <= 100:
                raise InvalidRequest(f"k {request.k} must lie between 1 and 100")
            if kind == "text" and len(request.text.query) > _MAX_QUERY_CHARS:
                raise InvalidRequest(
                    f"the query has {len(request.text.query)} characters; the limit is {_MAX_QUERY_CHARS}"
                )
            if kind == "image" and len(request.image.image) > self._options.limits.input_image_mb << 20:
                raise InvalidRequest(f"the picture has more than {self._options.limits.input_image_mb} MB")
            return await self._providers.search(request)

        return execute

    # Batches

    async def _stream_results(
        self, kind: str, items, make: Callable, call: CallContext, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Result]:
        """Yields results in order of completion.

        If the caller goes away, cells in flight are stopped after `_ABANDON_GRACE_S`.
        """
        started, statuses = time.monotonic(), collections.Counter()
        with self.tracing.span(kind, context.invocation_metadata()) as attributes:
            tasks = [asyncio.create_task(self._run_item(kind, item, make(item, call), call)) for item in items]
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
        started = time.monotonic()
        if not _ID.fullmatch(request_id):
            return pb.Result(request_id=request_id, status=pb.REFUSED, message=f"request id must match {_ID.pattern}")
        if self.draining:
            return pb.Result(request_id=request_id, status=pb.UNAVAILABLE, message="the service is shutting down")

        async def checked() -> pb.Result:
            try:
                return await execute()
            except InvalidRequest as error:
                return pb.Result(request_id=request_id, status=pb.REFUSED, message=str(error))

        result = await self._idempotency_cache.get_or_run(call.scoped_key(request_id), request_id, checked)
        if not result.wall_ms:
            result.wall_ms = (time.monotonic() - started) * 1e3
        return result

    def _stop_abandoned(self, item: pb.ExecRequest | pb.SearchRequest, call: CallContext) -> None:
        def interrupt() -> bool:
            if self._sessions is None or not isinstance(item, pb.ExecRequest):
                return False
            return self._sessions.interrupt_cell(item.session_id, call.principal, item.request_id)

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


@dataclass(frozen=True)
class RunningService:
    """A service that listens, with the parts that `__main__` shuts down."""

    server: grpc.aio.Server
    port: int
    tools: ToolsService
    manager: SandboxManagerClient | None
    health_servicer: health.aio.HealthServicer


async def start_service(options: ServiceOptions) -> RunningService:
    """Starts the sandbox manager, opens the search indexes and listens.

    Raises:
        SandboxUnavailable: no session process can be started.
        ValueError: an index or a search option is invalid.
        OSError: a certificate cannot be read, or the address cannot be bound.
    """
    manager = sessions = starting = None
    admission = AdmissionController(options.max_running, options.max_long_running)
    credentials = auth.server_credentials(options)
    if not options.no_sandbox:
        manager = SandboxManagerClient(
            options.limits, options.packages, warm=options.warm, slots=options.max_sessions + options.warm + 32,
            tier=options.tier, insecure=options.insecure,
        )  # fmt: skip
        starting = asyncio.create_task(manager.start())
        await asyncio.sleep(
            0
        )  # runs `manager.start` up to its first await: libraries load while the indexes are opened
        sessions = SessionRegistry(manager, options, admission)
    try:
        providers = await asyncio.to_thread(SearchProviders.open, options.search)
        if starting is not None:
            await starting
    except BaseException:
        if manager is not None:
            await manager.close()
        raise
    server = grpc.aio.server(
        interceptors=[auth.BearerTokenInterceptor(options.tokens)] if options.tokens else [],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 3),
            ("grpc.keepalive_time_ms", 60_000),  # detects callers whose connection broke without a FIN
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.so_reuseport", 0),
        ],
    )
    tools = ToolsService(options, manager, sessions, providers, admission)
    tools_pb2_grpc.add_ToolsServicer_to_server(tools, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if options.reflection:
        reflection.enable_server_reflection((_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{options.host}:{options.port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    for name in ("", _SERVICE_NAME):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    if options.metrics_port:
        tools.metrics.serve(options.host, options.metrics_port)
    return RunningService(server, port, tools, manager, health_servicer)
