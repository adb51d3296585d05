"""Ends a run whose tools service gives no results, instead of dropping every trajectory of every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dv2_jax.parallel.outage import ServiceOutage
from tools_service.client import Request, Status, ToolResult, ToolsClient

# Statuses of a service that did not execute the request.
_FAILURES = frozenset({Status.UNAVAILABLE, Status.SESSION_LOST, Status.CANCELLED})


class ToolsOutage(ServiceOutage):
    """The tools service has given no result for so long that the run must stop."""


class OutageMonitor:
    """A tools client whose `poll` raises after `outage_s` seconds in which every request has failed.

    An outage lasts from the first request after the last result. It is noticed when a request fails, so a service
    that recovers while the trainer sends no requests is not given up.
    """

    def __init__(self, client: ToolsClient, outage_s: float, clock: Callable[[], float] = time.monotonic):
        self._client, self._outage_s, self._clock = client, outage_s, clock
        self._failing_since: float | None = None  # submission of the first request since the last result

    def submit(self, requests: Sequence[Request]) -> None:
        """Sends requests; see `ToolsClient.submit`."""
        if requests and self._failing_since is None:
            self._failing_since = self._clock()
        self._client.submit(requests)

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        """Returns the results that have arrived; see `ToolsClient.poll`.

        Raises:
            ToolsOutage: there was no result but failures for `outage_s` seconds.
        """
        results = self._client.poll(timeout_s)
        failures = [result for result in results if result.status in _FAILURES]
        if len(failures) < len(results):
            self._failing_since = None
        elif failures and self._failing_since is not None:
            silent_s = self._clock() - self._failing_since
            if silent_s >= self._outage_s:
                self._failing_since = None
                raise ToolsOutage(
                    f"the tools service at {self._client.address} has given no result for {silent_s:.0f} s"
                    f" (tools.outage_s = {self._outage_s:g}); last error: {failures[-1].message}"
                )
        return results

    @property
    def address(self) -> str | Sequence[str]:
        """The address of the service, or those of its replicas."""
        return self._client.address

    def pending(self) -> int:
        """Returns the number of submitted requests whose results have not been polled."""
        return self._client.pending()

    def info(self) -> dict:
        """Returns the state of the service; see `ToolsClient.info`."""
        return self._client.info()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def close_sessions(self, ids: Sequence[str]) -> None:
        """Ends sessions; see `ToolsClient.close_sessions`."""
        self._client.close_sessions(ids)
