"""OpenTelemetry spans: one a request, its stages below it, as part of the caller's trace (metadata `traceparent`).

An extra (`pip install 'scenerank[trace]'`). Where spans go, how many are kept and what the service is called is said by
OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.observe import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

NAME = "scenerank"


class NoTracing(ValueError):
    """Traces were asked for, and what sends them is not installed."""


class Traces:
    """Turns requests into spans of one provider, once they have ended."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer: Tracer = provider.get_tracer(NAME)

    def __call__(self, answered: Answered) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(answered.trace)
        service, _, method = answered.method.lstrip("/").rpartition("/")
        span = self._tracer.start_span(
            answered.method.lstrip("/"),
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=answered.started_ns,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.response.status_code": answered.code,
                "scenerank.request_id": answered.request_id,
                **{f"scenerank.{name}": value for name, value in answered.notes.items()},
            },
        )
        if answered.code != "OK":
            span.set_status(trace.StatusCode.ERROR, answered.code)
        inside = trace.set_span_in_context(span)
        at = _clock(answered)
        for stage in answered.stages:
            child = self._tracer.start_span(stage.name, context=inside, start_time=at(stage.start_s))
            child.end(at(stage.end_s))
        span.end(at(answered.seconds))


def exported() -> Traces:
    """Spans sent over OTLP. Raises NoTracing where the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise NoTracing(f"traces need another library ({error.name}): pip install 'scenerank[trace]'") from error
    os.environ.setdefault("OTEL_SERVICE_NAME", NAME)
    provider = TracerProvider()  # sends what was not sent yet at exit
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _clock(answered: Answered) -> Callable[[float], int]:
    """Nanoseconds since the epoch of so many seconds into the request."""
    return lambda seconds: answered.started_ns + round(1e9 * seconds)
