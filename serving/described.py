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
        self._places = threading.BoundedSemaphore(STREAMS)

    def serve(self, server: grpc.Server) -> None:
        """Answer on a server that has not started."""
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)

    def ServerReflectionInfo(
        self, requests: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        if not self._places.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many reflection streams as there may be are open")
        try:
            yield from super().ServerReflectionInfo(requests, context)
        finally:
            self._places.release()
