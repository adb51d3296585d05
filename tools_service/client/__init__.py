"""The client of the tools service: thread-safe, synchronous to its user, asynchronous underneath.

A request ends with exactly one ``ToolResult``. A broken connection is tried again: the service executes a
request id at most once, so asking again is safe. What a tool did wrong and what the infrastructure did wrong
are told apart by ``Status``: after TIMEOUT, OOM or CRASHED the session's next cell runs in a fresh namespace,
pictures bound again, and says ``restarted=True``; SESSION_LOST and UNAVAILABLE mean that nothing was
executed and nobody's code is to blame. ``AsyncToolsClient`` is the same for asyncio.
"""

from tools_service.client.async_client import AsyncToolsClient
from tools_service.client.local_service import LocalService, start_local_service
from tools_service.client.messages import (
    ExecRequest,
    ImageSearchRequest,
    Kind,
    Request,
    SearchItem,
    Status,
    TextSearchRequest,
    ToolResult,
)
from tools_service.client.replicas import Tls
from tools_service.client.sync_client import ToolsClient

__all__ = [
    "AsyncToolsClient", "ExecRequest", "ImageSearchRequest", "Kind", "LocalService", "Request", "SearchItem", "Status",
    "TextSearchRequest", "Tls", "ToolResult", "ToolsClient", "start_local_service",
]  # fmt: skip
