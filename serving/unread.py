"""Calls whose message does not come: however many there are, and however slow, they hold few threads for long.

gRPC reads the message of a unary call on the thread that answers it, for as long as the caller takes. So these methods
are answered as ones that stream to the server, where the message is read here, and of too many calls that bring none
the oldest give way. On the wire the two are the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import grpc

READING = 32  # calls that may wait for their message as long as they like
PATIENCE_S = 3.0  # that every other one has: many messages at once take a busy server a while
Message = TypeVar("Message")


class Unread:
    """Reads the one message of calls; safe to call from threads.

    Args:
        most: calls that may wait for their message as long as they like.
        patience_s: after which the oldest of more give way.
    """

    def __init__(self, most: int, patience_s: float) -> None:
        self._most, self._patience_s = most, patience_s
        self._since: dict[grpc.ServicerContext, float] = {}  # the oldest first
        self._lock = threading.Lock()
        self._looks_again = False

    def __len__(self) -> int:
        return len(self._since)

    def message(self, requests: Iterator[Message], context: grpc.ServicerContext) -> Message:
        """Of a call. Raises where the caller brings none, or as one of the oldest of too many that wait for it."""
        with self._lock:
            self._since[context] = time.monotonic()
        self._relieve()
        try:
            message = next(requests, None)
        finally:
            with self._lock:
                self._since.pop(context, None)
        if message is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call brings no message")
            raise AssertionError("abort returned")
        return message

    def stop(self) -> None:
        """From now on all give way once they have had their patience: a server that stops waits for nobody longer."""
        self._most = 0
        self._relieve()

    def _relieve(self) -> None:
        """End the oldest calls above the number that have had their time, and look again when the next one has."""
        now = time.monotonic()
        with self._lock:
            surplus = list(islice(self._since.items(), max(0, len(self._since) - self._most)))
            ended = [context for context, since in surplus if now - since >= self._patience_s]
            for context in ended:
                del self._since[context]
            if len(ended) < len(surplus) and not self._looks_again:
                self._looks_again = True
                timer = threading.Timer(surplus[len(ended)][1] + self._patience_s - now, self._look_again)
                timer.daemon = True
                timer.start()
        for context in ended:
            context.cancel()

    def _look_again(self) -> None:
        self._looks_again = False
        self._relieve()


class UnreadInterceptor(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Has the message of every unary method read by one `Unread`."""

    def __init__(self, unread: Unread) -> None:
        self._unread = unread

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return handler.unary_unary(self._unread.message(requests, context), context)

        return grpc.stream_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)
