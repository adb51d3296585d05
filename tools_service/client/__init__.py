"""The client of the tools service: thread-safe, synchronous to its user, asynchronous underneath.

Every request ends with exactly one `ToolResult`. Broken connections are retried: the request id is an idempotency
key, so the service executes it at most once. `Status` separates errors of the code from failures of the
infrastructure: after TIMEOUT, OOM or CRASHED the session's next cell runs in a new namespace with its images bound
again and `restarted=True`; SESSION_LOST and UNAVAILABLE mean that nothing was executed and the code is not at fault.
`AsyncToolsClient` is the asyncio version.
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
from tools_service.common.index_schema import TEXT_INDEX_SCHEMA

__all__ = [
    "AsyncToolsClient", "ExecRequest", "ImageSearchRequest", "Kind", "LocalService", "Request", "SearchItem", "Status",
    "TEXT_INDEX_SCHEMA", "TextSearchRequest", "Tls", "ToolResult", "ToolsClient", "start_local_service",
]  # fmt: skip
