"""Starts the service: the sandbox manager, the search indexes and the gRPC server with its health checks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc
from tools_service.sandbox.manager.manager_client import SandboxManagerClient
from tools_service.search.service import SearchProviders
from tools_service.server import auth
from tools_service.server.admission import AdmissionController
from tools_service.server.cell_executor import CellExecutor
from tools_service.server.options import ServiceOptions
from tools_service.server.request_decoder import RequestDecodingInterceptor
from tools_service.server.servicer import Sandbox, ToolsService
from tools_service.server.session_janitor import SessionJanitor
from tools_service.server.sessions import SessionRegistry

MAX_MESSAGE = 64 << 20
_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Tools"].full_name


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
    sandbox = manager = starting = None
    admission = AdmissionController(options.max_running, options.max_long_running)
    credentials = auth.server_credentials(options)
    if not options.no_sandbox:
        manager = SandboxManagerClient(
            options.limits, options.packages, warm=options.warm, slots=options.max_sessions + options.warm + 32,
            tier=options.tier, insecure=options.insecure, use_cgroups=not options.no_cgroups,
        )  # fmt: skip
        starting = asyncio.create_task(manager.start())
        await asyncio.sleep(0)  # `manager.start` runs up to its first await: libraries load while indexes are opened
        sessions = SessionRegistry(manager, options)
        executor = CellExecutor(manager, sessions, admission, options.limits)
        sandbox = Sandbox(manager, sessions, executor, SessionJanitor(manager, sessions, options))
    try:
        providers = await asyncio.to_thread(SearchProviders.open, options.search)
        if starting is not None:
            await starting
    except BaseException:
        if manager is not None:
            await manager.close()
            if starting is not None:
                await asyncio.gather(starting, return_exceptions=True)  # retrieved: this error is the one to report
        raise
    server = grpc.aio.server(
        interceptors=[
            *([auth.BearerTokenInterceptor(options.tokens)] if options.tokens else []),
            RequestDecodingInterceptor(),
        ],
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
    tools = ToolsService(options, sandbox, providers, admission)
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
