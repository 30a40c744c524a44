"""What is seen from outside: Prometheus counters and histograms of requests and of the values that they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from serving.admission import Admission
from serving.online import ViewReading
from serving.pipeline import Ranking

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "scenerank_requests", "Requests answered, by method and code.", ("method", "code"), registry=self.registry
        )
        self._latency = Histogram(
            "scenerank_request_seconds",
            "Seconds in the server.",
            ("method",),
            buckets=LATENCY_SECONDS,
            registry=self.registry,
        )
        self._values = Counter(
            "scenerank_values",
            "Stored values asked for, by view and status.",
            ("view", "status"),
            registry=self.registry,
        )

        self._degraded = Counter(
            "scenerank_degraded",
            "Answers that fall short, by how they were scored and why.",
            ("level", "reason"),
            registry=self.registry,
        )
        self._feedback = Counter(
            "scenerank_feedback_events", "Feedback events stored, by novelty.", ("novelty",), registry=self.registry
        )

    def answered(self, method: str, code: str, seconds: float) -> None:
        self._requests.labels(method, code).inc()
        self._latency.labels(method).observe(seconds)

    def answer(self, ranking: Ranking) -> None:
        """What one answer was made of, and how it falls short."""
        if (short := ranking.degradation) is not None:
            self._degraded.labels(short.level.name.lower(), short.reason.name.lower()).inc()
        self.read(ranking.views)

    def read(self, views: Iterable[ViewReading]) -> None:
        """Stored values that an answer was made of."""
        for view in views:
            for status, count in (("present", view.present), ("missing", view.missing), ("stale", view.stale)):
                self._values.labels(view.view, status).inc(count)

    def follow(self, admission: Admission) -> None:
        """Show how many requests are at work or waiting."""
        inside = Gauge("scenerank_requests_inside", "Requests at work or waiting.", registry=self.registry)
        inside.set_function(lambda: admission.inside)
        waiting = Gauge("scenerank_requests_waiting", "Requests that wait for a worker.", registry=self.registry)
        waiting.set_function(lambda: admission.waiting)

    def recorded(self, new: int, repeated: int) -> None:
        self._feedback.labels("new").inc(new)
        self._feedback.labels("repeated").inc(repeated)

    def listen(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve `/metrics` over HTTP from a thread; returns the port (of the system's choice for 0)."""
        server, _ = start_http_server(port, address, self.registry)
        return int(server.server_port)


class MetricsInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Counts and times every unary call by its final status code."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def measured(request: object, context: grpc.ServicerContext) -> object:
            start, aborted = time.perf_counter(), True
            try:
                answer = handler.unary_unary(request, context)
                aborted = False
                return answer
            finally:
                code = context.code() or (grpc.StatusCode.UNKNOWN if aborted else grpc.StatusCode.OK)
                self._metrics.answered(details.method, code.name, time.perf_counter() - start)

        return grpc.unary_unary_rpc_method_handler(measured, handler.request_deserializer, handler.response_serializer)
