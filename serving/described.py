"""Server reflection, of which few streams may be open: each holds a thread for as long as its caller likes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

STREAMS = 16  # each holds a thread


class Described(reflection.ReflectionServicer):  # type: ignore[misc] # grpc has no types
    """What the services are made of, told to so many callers at a time; safe to call from threads."""

    def __init__(self, services: Sequence[str]) -> None:
        super().__init__([*services, reflection.SERVICE_NAME])
        self._open: set[grpc.ServicerContext] = set()
        self._stops = False
        self._lock = threading.Lock()

    def serve(self, server: grpc.Server) -> None:
        """Answer on a server that has not started."""
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)

    def stop(self) -> None:
        """End the streams that are open: some tools keep theirs for as long as they run."""
        with self._lock:
            self._stops = True
            ended = list(self._open)
        for context in ended:
            context.cancel()

    def ServerReflectionInfo(
        self, requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        with self._lock:
            has_place = len(self._open) < STREAMS and not self._stops
            if has_place:
                self._open.add(context)
        if not has_place:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many reflection streams as there may be are open")
        try:
            yield from super().ServerReflectionInfo(requests, context)
        finally:
            with self._lock:
                self._open.discard(context)
