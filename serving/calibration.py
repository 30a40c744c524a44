"""Whether places are clicked as often as was said: of a sample of answers, what was predicted and what became of it.

One answer every few seconds is remembered until its outcome is known, as an export understands it. Then the feedback
database is asked what was shown and clicked of it, whichever server took that down. Answers are chosen before anything
is known of them, and all of them wait equally long, so the sums are those of all answers, but for chance.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from serving.pipeline import Ranking

log = logging.getLogger(__name__)
WAIT_S = 30 * 60.0
EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Came:
    """Of the places shown in one scenario: how many, clicks that were expected of them, and clicks that came."""

    scenario: str
    shown: int
    expected: float
    clicked: int


@dataclass(frozen=True, eq=False)
class _Waiting:
    given: float
    answer_id: str
    scenario: str
    p_click: Mapping[str, float]


class Calibration:
    """Compares in a thread of its own; safe to call from threads.

    Args:
        outcomes: answer ids -> answer id -> the places that were shown, and whether they were clicked.
        told: of each answer of which a place was shown.
        wait_s: from an answer to the question what became of it.
        every_s: one answer at most in so many seconds is remembered.
    """

    def __init__(
        self,
        outcomes: Callable[[Sequence[str]], Mapping[str, Mapping[str, bool]]],
        told: Callable[[Came], None],
        *,
        wait_s: float = WAIT_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._outcomes, self._told = outcomes, told
        self._wait_s, self._every_s = wait_s, every_s
        # Where the database is away for long, the oldest are forgotten.
        self._waiting: deque[_Waiting] = deque(maxlen=2 * round(wait_s / every_s) + 1)
        self._next = 0.0
        self._lock = threading.Lock()
        self._stops = threading.Event()
        threading.Thread(target=self._run, name="calibration", daemon=True).start()

    def answered(self, scenario: str, ranking: Ranking) -> None:
        """Perhaps remember an answer."""
        now = time.monotonic()
        with self._lock:
            if now < self._next:
                return
            self._next = now + self._every_s
        p_click = dict(zip(ranking.poi_ids, ranking.p_click.tolist(), strict=True))
        self._waiting.append(_Waiting(now, ranking.answer_id, scenario, p_click))

    def stop(self) -> None:
        self._stops.set()

    def _run(self) -> None:
        while not self._stops.wait(self._every_s):
            try:
                self._compare()
            except Exception as error:  # the database is away: the next time is soon
                log.debug("outcomes cannot be read: %s", type(error).__name__)

    def _compare(self) -> None:
        """All whose time has come."""
        until = time.monotonic() - self._wait_s
        due = [one for one in list(self._waiting) if one.given <= until]
        if not due:
            return
        outcomes = self._outcomes([one.answer_id for one in due])
        for one in due:
            with suppress(ValueError):  # forgotten meanwhile
                self._waiting.remove(one)
            # Places that the answer did not hold are somebody's mistake.
            places = {poi: clicked for poi, clicked in outcomes.get(one.answer_id, {}).items() if poi in one.p_click}
            if places:
                self._told(
                    Came(
                        scenario=one.scenario,
                        shown=len(places),
                        expected=sum(one.p_click[poi] for poi in places),
                        clicked=sum(places.values()),
                    )
                )
