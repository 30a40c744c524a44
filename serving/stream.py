"""What a person sees of clicks on their way into the online store, and when following them ends."""

from __future__ import annotations

import signal
import time

from feature_repo.streaming.consume import Step
from serving import screen

SAID_EVERY_S = 10.0


class Watch:
    """Says how it goes every few seconds, and when to stop.

    Args:
        once: whether to stop where a step finds nothing.
    """

    def __init__(self, *, once: bool) -> None:
        self._once, self._said = once, time.monotonic()
        self._clicks = self._repeated = self._rejected = 0
        self._lag_s = 0.0
        self._asked_to_stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def stopped(self, step: Step) -> bool:
        self._clicks += step.clicks
        self._repeated += step.repeated
        self._rejected += step.rejected
        self._lag_s = step.lag_s or self._lag_s
        ends = self._asked_to_stop or (self._once and not step.messages and not step.failed)
        if ends or (step.messages and time.monotonic() >= self._said + SAID_EVERY_S):
            self._said = time.monotonic()
            age = f"; the newest was {self._lag_s:.2f} s old when it was in" if self._clicks else ""
            screen.console.print(
                f"{self._clicks:,} clicks, {self._repeated:,} repeated, {self._rejected:,} left out{age}"
            )
        return ends

    def _stop(self, number: int, frame: object) -> None:
        """The step under way is finished first."""
        self._asked_to_stop = True
