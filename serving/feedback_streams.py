"""Streams of requests: so many at a time, and one that is idle when the server stops ends at once.

gRPC waits for the next request of a stream in a way that only the caller can end. So a thread of the stream's own waits
there, and the one that answers waits for either of the two: a request, or the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from enum import Enum
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

Request = TypeVar("Request")


class TooManyStreams(RuntimeError):
    """As many streams are open as may be."""


class Stopping(RuntimeError):
    """The server stops; what was not answered can be sent to another."""


class _Said(Enum):
    ENDED = "the caller sends no more"
    STOP = "the server stops"


Inbox: TypeAlias = "SimpleQueue[Request | _Said]"


class Streams:
    """The open streams of one server; safe to call from threads.

    Args:
        most: at a time; each holds two threads for as long as it lasts.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Inbox[object]] = set()
        self._lock = threading.Lock()
        self._stops = False

    def requests(self, requests: Iterator[Request]) -> Generator[Request, None, None]:
        """The requests of one stream; the next is read once the one before was dealt with. A generator: close it.

        Raises:
            TooManyStreams: at the first.
            Stopping: the server stops, and all that had come was dealt with.
        """
        inbox: Inbox[object] = SimpleQueue()
        with self._lock:
            if self._stops:
                raise Stopping("the server is stopping")
            if len(self._open) >= self._most:
                raise TooManyStreams("as many feedback streams as there may be are open")
            self._open.add(inbox)
        wanted = threading.Semaphore()
        threading.Thread(target=_read, args=(requests, inbox, wanted), name="stream", daemon=True).start()
        try:
            while (said := inbox.get()) is not _Said.ENDED:
                if said is _Said.STOP:
                    raise Stopping("the server is stopping")
                yield said  # type: ignore[misc] # a request
                wanted.release()
        finally:
            wanted.release()  # who reads finds the call ended
            with self._lock:
                self._open.discard(inbox)

    def stop(self) -> None:
        """End every stream behind what it has brought; no other is opened."""
        with self._lock:
            self._stops = True
            for inbox in self._open:
                inbox.put(_Said.STOP)


def _read(requests: Iterator[Request], inbox: Inbox[Request], wanted: threading.Semaphore) -> None:
    try:
        while wanted.acquire():
            inbox.put(next(requests))
    except Exception:  # the end: gRPC raises what it likes where the caller has left
        inbox.put(_Said.ENDED)
