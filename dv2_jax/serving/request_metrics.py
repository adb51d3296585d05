"""Prometheus metrics of the server. Labels are models and statuses, never ids, users or texts."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class RequestMetrics:
    """Counters of requests and answers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dv2_serve_requests_total",
            "Chat requests by HTTP status; 499: the client left",
            ("model", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "dv2_serve_request_seconds",
            "Time from a request to the end of its response",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._answers = Counter("dv2_serve_answers_total", "Answers, one per choice", registry=self.registry)
        self._tokens = Counter("dv2_serve_sampled_tokens_total", "Sampled tokens of answers", registry=self.registry)
        self._tool_calls = Counter("dv2_serve_tool_calls_total", "Tool calls of answers", registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Registers a gauge whose value is read at every scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def record_request(self, model: str, status: int, seconds: float) -> None:
        """Counts a request; `model` is empty where the request named none that is served."""
        self._requests.labels(model, str(status)).inc()
        if status == 200:
            self._seconds.labels(model).observe(seconds)

    def record_answer(self, sampled_tokens: int, tool_calls: int) -> None:
        """Counts an answer."""
        self._answers.inc()
        self._tokens.inc(sampled_tokens)
        self._tool_calls.inc(tool_calls)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
