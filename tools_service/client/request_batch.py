"""The state of one batch of requests while it is sent, repeated and answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tools_service.client.messages import Request, ToolResult


class Batch:
    """The requests of a batch that wait for a result, and what its attempts have learned.

    A request leaves the batch when it gets its result, which goes to the caller at once.
    """

    def __init__(self, requests: Iterable[Request], results: asyncio.Queue[ToolResult]):
        self._waiting = {request.request_id: request for request in requests}
        self._results = results
        self.missing_digests: set[bytes] = set()  # images that the service does not hold and that must be sent again
        self.last_error = "no answer"

    @property
    def waiting(self) -> list[Request]:
        """The requests without a result, in the order in which they were submitted."""
        return list(self._waiting.values())

    def find(self, request_id: str) -> Request | None:
        """Returns the request if it waits for a result; None for an unknown or an answered one."""
        return self._waiting.get(request_id)

    def finish(self, result: ToolResult) -> None:
        """Delivers the result of a waiting request."""
        del self._waiting[result.request_id]
        self._results.put_nowait(result)
