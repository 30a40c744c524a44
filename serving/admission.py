"""Who is let in: so many requests at work, so many that wait, and nobody whose time is up or who has left.

What more comes is refused at once, with a hint when to come again: answers that were accepted stay fast, and memory
stays flat, however many arrive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

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


class _Turn:
    """One request's place in the line."""

    def __init__(self) -> None:
        self.seated = self.left = False
        self.called = threading.Event()  # to a seat, or because the caller left


class Admission:
    """The door to work: a line in which who came first is next; safe to call from threads.

    Args:
        at_work: requests at the same time.
        waiting: further ones that wait for a seat.
    """

    def __init__(self, at_work: int, waiting: int) -> None:
        self._seats, self._places = at_work, waiting
        self._lock = threading.Lock()
        self._free = at_work  # there is a line only where no seat is free
        self._line: deque[_Turn] = deque()
        self._mean_s = FIRST_S

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def inside(self) -> int:
        """Requests at work or waiting."""
        with self._lock:
            return self._seats - self._free + len(self._line)

    @contextmanager
    def entered(
        self, remaining_s: float | None, when_gone: Callable[[Callable[[], None]], bool] = lambda call: True
    ) -> Iterator[None]:
        """A seat, for the block.

        Args:
            remaining_s: until the caller's deadline; None: there is none.
            when_gone: takes a function to be called as soon as the caller leaves; False where it has left already.
        Raises:
            Overloaded, Expired, Gone: no work is done.
        """
        if remaining_s is not None and remaining_s <= 0:
            raise Expired("the deadline had passed when the request came")
        turn = self._joined()
        try:
            if not when_gone(partial(self._leave, turn)):
                self._leave(turn)
            turn.called.wait(remaining_s)
            if turn.left:
                raise Gone("the caller left while the request waited")
            if not turn.seated:
                raise Expired("the deadline passed while the request waited")
            started = time.perf_counter()
            yield
            self._took(time.perf_counter() - started)
        finally:
            self._end(turn)

    def _joined(self) -> _Turn:
        """A turn with a seat, or at the end of the line."""
        turn = _Turn()
        with self._lock:
            if self._free:
                self._free -= 1
                self._seat(turn)
            elif len(self._line) < self._places:
                self._line.append(turn)
            else:
                raise Overloaded((len(self._line) + 1) * self._mean_s / self._seats)
        return turn

    def _leave(self, turn: _Turn) -> None:
        """The caller is gone: the place in the line is free from now on; a seat, once the work ends."""
        with self._lock:
            turn.left = True
            self._unline(turn)
        turn.called.set()

    def _end(self, turn: _Turn) -> None:
        """The seat goes to the next in the line."""
        with self._lock:
            if not turn.seated:
                self._unline(turn)
            elif self._line:
                self._seat(self._line.popleft())
            else:
                self._free += 1

    def _seat(self, turn: _Turn) -> None:
        turn.seated = True
        turn.called.set()

    def _unline(self, turn: _Turn) -> None:
        with suppress(ValueError):
            self._line.remove(turn)

    def _took(self, seconds: float) -> None:
        with self._lock:
            self._mean_s = KEPT * self._mean_s + (1 - KEPT) * seconds
