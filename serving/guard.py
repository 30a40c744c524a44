"""A bound on the time that an answer waits for the online store, and a rest for a store that failed.

Reads run on threads of their own, so a store that hangs holds those and no request; those of a store on this machine,
which waits for nobody, run where they are asked. After a failure nobody asks for a while; then one request tries, and
the first that succeeds ends the rest: recovery needs no restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, TypeVar

from feature_repo.stores.packed import StoreUnavailable

log = logging.getLogger(__name__)
Found = TypeVar("Found")


class StoreSlow(StoreUnavailable):
    """It did not answer in the time that there was."""


class StoreGuard:
    """The one way to the store for requests; safe to call from threads.

    Args:
        threads: reads at the same time; further ones wait for theirs.
        patience_s: the longest that a request waits, where its deadline leaves as much.
        rest_s: how long a store that failed is left alone.
        is_local: whether reads wait for nobody else, and need no bound.
    """

    def __init__(self, threads: int, patience_s: float = 2.0, rest_s: float = 1.0, *, is_local: bool = False) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._patience_s, self._rest_s, self._is_local = patience_s, rest_s, is_local
        self._threads = threads
        self._begun: dict[Future[Any], float] = {}  # of each read that is not done, when it was asked for
        self._lock = threading.Lock()
        self._failed_at: float | None = None  # by the monotonic clock; None: the last read was well
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether the last read was well."""
        return self._failed_at is None

    def ask(self, read: Callable[[], Found], within_s: float | None = None) -> Found:
        """What `read` returns.

        Args:
            within_s: what the request's deadline leaves for it; None: there is none.
        Raises:
            StoreUnavailable: the read failed so, or the store rests after a failure.
            StoreSlow: it takes longer than may be waited. The read goes on; what it finds is dropped.
        """
        if not self._may_ask():
            raise StoreUnavailable("the online store failed a moment ago and is left alone")
        try:
            found = read() if self._is_local else self._apart(read, within_s)
        except StoreSlow:
            raise
        except StoreUnavailable as error:
            self._failed(error)
            raise
        except BaseException:
            self._untried()
            raise
        self._answered()
        return found

    def _apart(self, read: Callable[[], Found], within_s: float | None) -> Found:
        """The same on a thread of its own."""
        if self._all_hang():
            self._failed(None)
            raise StoreSlow("all reads from the online store hang")
        within_s = self._patience_s if within_s is None else min(self._patience_s, within_s)
        reading = self._begin(read)
        if not wait([reading], max(within_s, 0.0)).done:
            reading.cancel()  # where it has not found a thread
            # A caller in a hurry says nothing of the store; one that waited as long as anybody does.
            if within_s >= self._patience_s:
                self._failed(None)
            else:
                self._untried()
            raise StoreSlow(f"the online store takes longer than {1000 * within_s:.0f} ms")
        return reading.result()

    def close(self) -> bool:
        """Take no more reads; whether none hangs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            return all(reading.done() for reading in self._begun)

    def _begin(self, read: Callable[[], Found]) -> Future[Found]:
        reading = self._pool.submit(copy_context().run, read)  # stages are of the request under way
        with self._lock:
            self._begun[reading] = time.monotonic()
        reading.add_done_callback(self._ended)
        return reading

    def _ended(self, reading: Future[Found]) -> None:
        with self._lock:
            del self._begun[reading]

    def _all_hang(self) -> bool:
        """Whether every thread reads for longer than anybody waits; many reads that are under way say nothing."""
        long_ago = time.monotonic() - self._patience_s
        with self._lock:
            return sum(begun < long_ago for begun in self._begun.values()) >= self._threads

    def _may_ask(self) -> bool:
        with self._lock:
            if self._failed_at is None:
                return True
            if self._trying or time.monotonic() - self._failed_at < self._rest_s:
                return False
            self._trying = True
            return True

    def _failed(self, error: StoreUnavailable | None) -> None:
        with self._lock:
            if self._failed_at is None:
                said = error or "the online store does not answer in time"
                cause = error and error.__cause__  # in full: it may be a fault that no waiting mends
                log.warning("%s; answers go on without it", said, exc_info=cause)
            self._failed_at, self._trying = time.monotonic(), False

    def _untried(self) -> None:
        with self._lock:
            self._trying = False

    def _answered(self) -> None:
        with self._lock:
            if self._failed_at is not None:
                log.warning("the online store answers again")
            self._failed_at, self._trying = None, False
