"""Prometheus metrics of the service. Labels are statuses, kinds and provider names, never ids, code or queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from tools_service.proto import tools_pb2 as pb

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServiceMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tools_requests_total", "Requests answered", ("kind", "status"), registry=self.registry
        )
        self._wall = Histogram(
            "tools_wall_seconds",
            "Time that a cell or a search took",
            ("kind",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue = Histogram(
            "tools_queue_seconds", "Time that a cell waited before it ran", buckets=_SECONDS, registry=self.registry
        )
        self._bytes = Counter("tools_image_bytes_total", "Bytes of images returned", registry=self.registry)
        self._searches = Counter(
            "tools_searches_total",
            "Searches by the provider that answered",
            ("provider", "source"),
            registry=self.registry,
        )

    def record_result(self, kind: str, result: pb.Result) -> None:
        self._requests.labels(kind, pb.Status.Name(result.status)).inc()
        if result.wall_ms:
            self._wall.labels(kind).observe(result.wall_ms / 1e3)
        if kind == "exec" and result.wall_ms:
            self._queue.observe(result.queue_ms / 1e3)
            self._bytes.inc(sum(map(len, result.images)))
        if result.provider:
            source = "cache" if result.cached else "degraded" if result.degraded else "live"
            self._searches.labels(result.provider.split(":")[0], source).inc()

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Registers a gauge whose value is read at every scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def counters(self, name: str, text: str, read: Callable[[], dict[str, int]], events: tuple[str, ...]) -> None:
        """Registers one gauge per event whose value `read` returns at every scrape."""
        gauge = Gauge(name, text, ("event",), registry=self.registry)
        for event in events:
            gauge.labels(event).set_function(partial(_read_event, read, event))

    def serve(self, host: str, port: int) -> None:
        """Serves scrapes over HTTP in a background thread. Raises OSError."""
        start_http_server(port, host, registry=self.registry)


def _read_event(read: Callable[[], dict[str, int]], event: str) -> float:
    return read().get(event, 0)
