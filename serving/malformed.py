"""Bytes that are no message are the caller's mistake: INVALID_ARGUMENT, where gRPC itself says INTERNAL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_MALFORMED = object()  # in the place of a request whose bytes are none


class MalformedInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Ends calls, and streams at the message in question, whose bytes cannot be read as the method's request."""

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler

        def read(content: bytes) -> object:
            try:
                return handler.request_deserializer(content)
            except DecodeError:
                return _MALFORMED

        if handler.request_streaming:
            return _streaming(handler, read)
        return _unary(handler, read)


def _unary(handler: Any, read: Callable[[bytes], object]) -> Any:
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler

    def guarded(request: object, context: grpc.ServicerContext) -> object:
        return behaviour(_checked(request, context), context)

    return make(guarded, read, handler.response_serializer)


def _streaming(handler: Any, read: Callable[[bytes], object]) -> Any:
    behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler

    def guarded(requests: Iterator[object], context: grpc.ServicerContext) -> object:
        return behaviour((_checked(request, context) for request in requests), context)

    return make(guarded, read, handler.response_serializer)


def _checked(request: object, context: grpc.ServicerContext) -> object:
    if request is _MALFORMED:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of the kind that this method takes")
    return request
