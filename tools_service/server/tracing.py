"""OpenTelemetry traces: one span per call, child of the caller's span if the call carries a W3C trace context.

Spans hold counts, statuses and times: never code, output, queries, images or ids that a caller chose. Needs the
extra `traces`; without `--traces` OpenTelemetry is not imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

_SERVICE_NAME = "tools_service"


class Tracing:
    """Records spans if a tracer provider is configured, and does nothing otherwise."""

    def __init__(self, provider: Any = None):
        """Takes an `opentelemetry.sdk.trace.TracerProvider`, or None for no spans."""
        self._provider = provider

    @classmethod
    def open(cls, target: str) -> Tracing:
        """Opens the exporter for `target`.

        `target` is a file to which spans are appended as JSON, `otlp` for the collector that the
        `OTEL_EXPORTER_OTLP_*` variables name, or empty for no spans. Raises ValueError naming the missing package.
        """
        if not target:
            return cls()
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            exporter = _otlp() if target == "otlp" else _file(target)
        except ImportError as error:
            raise ValueError(f"--traces {target}: {error}; pip install 'dv2_jax[traces]'") from None
        provider = TracerProvider(resource=Resource.create({"service.name": _SERVICE_NAME}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextlib.contextmanager
    def span(self, name: str, metadata: Any) -> Iterator[dict[str, int | float | str]]:
        """Records a span around one call; entries of the yielded mapping become its attributes at the end."""
        attributes: dict[str, int | float | str] = {}
        if self._provider is None:
            yield attributes
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(_string_metadata(metadata))
        tracer = self._provider.get_tracer(_SERVICE_NAME)
        span = tracer.start_span(f"tools/{name}", context=parent, kind=trace.SpanKind.SERVER)
        try:
            yield attributes
        finally:
            span.set_attributes({f"tools.{key}": value for key, value in attributes.items()})
            span.end()

    def close(self) -> None:
        """Flushes pending spans and shuts the exporter down."""
        if self._provider is not None:
            self._provider.shutdown()


def _otlp() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _file(path: str) -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter(out=open(path, "a"), formatter=lambda span: span.to_json(indent=None) + "\n")


def _string_metadata(metadata: Any) -> Mapping[str, str]:
    return {name: value for name, value in metadata or () if isinstance(value, str)}
