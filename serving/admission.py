"""Who is let in: so many requests at work, so many that wait, and nobody whose time is up or who has left.

What more comes is refused at once, with a hint when to come again: answers that were accepted stay fast, and memory
stays flat, however many arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KEPT = 0.95  # share of the mean time of a request that one more request leaves as it was
FIRST_S = 0.02  # what a request is taken to need before any was measured


class Overloaded(RuntimeError):
    """As many requests wait as may; `retry_after_s`: when those that do will have been answered, about."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests are waiting; try again in {1000 * retry_after_s:.0f} ms")
        self.retry_after_s = retry_after_s


class Expired(RuntimeError):
    """The caller's deadline passed before work began."""


class Gone(RuntimeError):
    """The caller left before work began."""


class Admission:
    """The door to work; safe to call from threads.

    Args:
        at_work: requests at the same time.
        waiting: further ones that wait for a seat.
    """

    def __init__(self, at_work: int, waiting: int) -> None:
        self._at_work, self._most = at_work, at_work + waiting
        self._seats = threading.Semaphore(at_work)
        self._counting = threading.Lock()
        self._inside = 0
        self._mean_s = FIRST_S

    @property
    def inside(self) -> int:
        """Requests at work or waiting."""
        return self._inside

    @contextmanager
    def entered(self, remaining_s: float | None, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """A seat, for the block.

        Args:
            remaining_s: until the caller's deadline; None: there is none.
            is_wanted: whether the caller still waits for the answer.
        Raises:
            Overloaded, Expired, Gone: no work is done.
        """
        if remaining_s is not None and remaining_s <= 0:
            raise Expired("the deadline had passed when the request came")
        with self._counting:
            if self._inside >= self._most:
                raise Overloaded((self._inside - self._at_work + 1) * self._mean_s / self._at_work)
            self._inside += 1
        try:
            if not self._seats.acquire(timeout=remaining_s):
                raise Expired("the deadline passed while the request waited")
            try:
                if not is_wanted():
                    raise Gone("the caller left while the request waited")
                started = time.perf_counter()
                yield
                self._took(time.perf_counter() - started)
            finally:
                self._seats.release()
        finally:
            with self._counting:
                self._inside -= 1

    def _took(self, seconds: float) -> None:
        with self._counting:
            self._mean_s = KEPT * self._mean_s + (1 - KEPT) * seconds
