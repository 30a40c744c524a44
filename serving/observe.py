"""One request seen from outside: how it ended, how long it took, and where in it the time went.

A stage is timed under its name wherever in the code it stands: the request that a thread works on is a context
variable, so no signature has to carry it. Once the request has ended, every observer (metrics, log, traces) is told.
Nothing here holds an id of a user or a POI, or a token.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc

from serving.v1 import admin_pb2
from serving.v1 import recommender_pb2 as pb

log = logging.getLogger(__name__)
SERVICE = pb.DESCRIPTOR.services_by_name["RecommenderService"]
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
HEALTH = "/grpc.health.v1.Health/Check"
METHODS = {f"/{of.full_name}/{method.name}" for of in (SERVICE, ADMIN_SERVICE) for method in of.methods} | {HEALTH}
TRACE = ("traceparent", "tracestate")  # W3C Trace Context
OTHER = "other"  # whatever else was called: callers could make up names without end


@dataclass(frozen=True)
class Stage:
    """A part of a request; seconds since its beginning."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A request that has ended.

    Attributes:
        request_id: the server's own.
        started_ns: since the epoch.
        stages: in the order in which they ended; one may come more than once.
        notes: what was said of it meanwhile (`note`).
        trace: the caller's, as its metadata carried it.
    """

    request_id: str
    method: str
    code: str
    started_ns: int
    seconds: float
    stages: Sequence[Stage]
    notes: Mapping[str, str]
    trace: Mapping[str, str]

    def stage_seconds(self) -> dict[str, float]:
        """By name."""
        total: dict[str, float] = {}
        for stage in self.stages:
            total[stage.name] = total.get(stage.name, 0.0) + stage.end_s - stage.start_s
        return total


Observer: TypeAlias = Callable[[Answered], None]


@dataclass
class _UnderWay:
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_ns: int = field(default_factory=time.time_ns)
    start: float = field(default_factory=time.perf_counter)
    stages: list[Stage] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


_REQUEST: ContextVar[_UnderWay | None] = ContextVar("request", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time the block, or as a decorator the function, as a stage of the request under way, if there is one."""
    request = _REQUEST.get()
    if request is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        request.stages.append(Stage(name, start - request.start, time.perf_counter() - request.start))


def seconds_in(name: str) -> float:
    """That the request under way spent in a stage so far; 0 where there is none."""
    request = _REQUEST.get()
    return 0.0 if request is None else sum(s.end_s - s.start_s for s in request.stages if s.name == name)


def note(name: str, value: str) -> None:
    """Say something of the request under way, if there is one; never an id of a user or a POI."""
    if (request := _REQUEST.get()) is not None:
        request.notes[name] = value


def request_id() -> str:
    """Of the request under way; a new one where there is none."""
    request = _REQUEST.get()
    return uuid.uuid4().hex if request is None else request.request_id


def fault(context: grpc.ServicerContext) -> NoReturn:
    """End a call at an exception that is a fault of ours: the log has it, the caller is told an id to find it by."""
    error_id = request_id()
    log.exception("request failed, error id %s", error_id)
    context.abort(grpc.StatusCode.INTERNAL, f"internal error {error_id}")
    raise AssertionError("abort returned")


class ObservingInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Tells every observer of every call, by its final status code; of a stream as a whole."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is not None and not handler.response_streaming:
            return self._unary(handler, details)
        if handler is not None and handler.stream_stream is not None:
            return self._stream(handler, details)
        return handler

    def _unary(self, handler: Any, details: Any) -> Any:
        behaviour = handler.stream_unary or handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        def observed(message: object, context: grpc.ServicerContext) -> object:
            request, aborted = _UnderWay(), True
            before = _REQUEST.set(request)
            try:
                answer = behaviour(message, context)
                aborted = False
                return answer
            finally:
                _REQUEST.reset(before)
                self._tell(details, context, request, aborted)

        return make(observed, handler.request_deserializer, handler.response_serializer)

    def _stream(self, handler: Any, details: Any) -> Any:
        def observed(messages: object, context: grpc.ServicerContext) -> Iterator[object]:
            # No stages: from one answer to the next a stream changes threads, and with them contexts.
            request, aborted = _UnderWay(), True
            try:
                yield from handler.stream_stream(messages, context)
                aborted = False
            finally:
                self._tell(details, context, request, aborted)

        return grpc.stream_stream_rpc_method_handler(
            observed, handler.request_deserializer, handler.response_serializer
        )

    def _tell(self, details: Any, context: grpc.ServicerContext, request: _UnderWay, aborted: bool) -> None:
        # A call that gRPC or the caller has ended has no code here: what came after that is no fault of ours.
        failed = grpc.StatusCode.UNKNOWN if context.is_active() else grpc.StatusCode.CANCELLED
        code = context.code() or (failed if aborted else grpc.StatusCode.OK)
        answered = Answered(
            request_id=request.request_id,
            method=details.method if details.method in METHODS else OTHER,
            code=code.name,
            started_ns=request.started_ns,
            seconds=time.perf_counter() - request.start,
            stages=request.stages,
            notes=request.notes,
            trace={name: value for name, value in details.invocation_metadata if name in TRACE},
        )
        for observer in self._observers:
            observer(answered)
