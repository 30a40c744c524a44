"""gRPC's health service, which takes no token: however many callers ask, and however slowly, they hold few threads.

Of too many calls that bring no message the oldest gives way at once: whoever asks for health has nothing long to say.
The service that comes with gRPC sends to watchers under the lock of all, where one that takes nothing would stop every
other, and it keeps every name that was ever asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from serving.unread import Unread

READING = 16  # calls whose message has not come
WATCHERS = 64  # each holds a thread for as long as it watches
THREADS = READING + WATCHERS  # that callers can hold, at most


class Life:
    """Whether the server, and what it rests on, is there, by name; safe to call from threads."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = threading.Condition()
        self._stops = False
        self.unread = Unread(READING, patience_s=0.0)
        self._places = threading.BoundedSemaphore(WATCHERS)

    def serve(self, server: grpc.Server) -> None:
        """Answer on a server that has not started."""
        ways = HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, *ways),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, *ways),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods),))

    def set(self, name: str, status: int) -> None:
        """Say so to all that watch the name. After a stop nothing changes."""
        with self._changed:
            if not self._stops:
                self._statuses[name] = status
                self._changed.notify_all()

    def stop(self) -> None:
        """NOT_SERVING from now on; watchers hear it, and their streams end."""
        with self._changed:
            self._statuses = dict.fromkeys(self._statuses, HealthCheckResponse.NOT_SERVING)
            self._stops = True
            self._changed.notify_all()

    def status(self, name: str) -> int | None:
        """None for a name that nothing was said of."""
        return self._statuses.get(name)

    def _check(self, requests: Iterator[HealthCheckRequest], context: grpc.ServicerContext) -> HealthCheckResponse:
        status = self.status(self.unread.message(requests, context).service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no service of that name")
        return HealthCheckResponse(status=status)

    def _watch(
        self, requests: Iterator[HealthCheckRequest], context: grpc.ServicerContext
    ) -> Iterator[HealthCheckResponse]:
        name = self.unread.message(requests, context).service
        if not self._places.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many watch health as may")
        try:
            yield from self._said(name, context)
        finally:
            self._places.release()

    def _said(self, name: str, context: grpc.ServicerContext) -> Iterator[HealthCheckResponse]:
        """What is said of a name now, and whenever that changes, until the server stops or the caller leaves."""
        told: int | None = None
        context.add_callback(self._wake)
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, name, told, context))
                status, stops = self._known(name), self._stops
            if not context.is_active():
                return
            if status != told:
                yield HealthCheckResponse(status=status)
            if stops:
                return
            told = status

    def _has_news(self, name: str, told: int | None, context: grpc.ServicerContext) -> bool:
        return self._stops or self._known(name) != told or not context.is_active()

    def _known(self, name: str) -> int:
        return self._statuses.get(name, HealthCheckResponse.SERVICE_UNKNOWN)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
