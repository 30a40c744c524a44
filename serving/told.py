"""Waiting to be told to stop, by SIGTERM or SIGINT."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue

LOOKS_S = 0.5


class Told:
    """Takes both signals from now on; to be made and waited for by the main thread.

    A queue and not an Event, whose lock would be held already by the thread that a signal interrupts on its way into
    waiting. And looked at again and again: the system may hand a signal to another thread, and the main thread, which
    alone runs what Python does of it, would wait on.
    """

    def __init__(self) -> None:
        self._signals: SimpleQueue[int] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda arrived, _: self._signals.put(arrived))

    def __bool__(self) -> bool:
        """Whether one came, of which nobody was told yet."""
        return not self._signals.empty()

    def wait(self) -> None:
        """Until one comes."""
        while True:
            try:
                self._signals.get(timeout=LOOKS_S)
            except Empty:
                continue
            return
