"""A bundle in the shadow: it scores a share of the requests beside the one that answers, and nobody waits for it.

What it would have made of the same candidates is compared with what was answered: the overlap of the first ten places,
the probabilities by scenario, the time; and, where feedback comes, both against the clicks. One thread works for it;
what comes while it is busy is skipped, and so the shadow takes one core at most.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from serving.feedback import FeedbackEvent, Outcome
from serving.pipeline import Pipeline, Ranking
from serving.request import RankRequest, RecommendRequest

log = logging.getLogger(__name__)
WAITING = 4  # requests
TOP = 10
REMEMBERED = 20_000  # answers that feedback may still come for
CLICKED = (Outcome.CLICKED, Outcome.ORDERED)


@dataclass
class ScenarioTally:
    """Sums over the places of one scenario's answers: probabilities of a click by both; of those shown, clicks too."""

    places: int = 0
    p_click: float = 0.0
    shadow_p_click: float = 0.0
    shown: int = 0
    clicks: int = 0
    expected: float = 0.0
    shadow_expected: float = 0.0


@dataclass
class Tally:
    """What was seen since the shadow stands there."""

    answers: int = 0
    failed: int = 0
    skipped: int = 0
    overlap: float = 0.0
    seconds: float = 0.0
    shadow_seconds: float = 0.0
    scenarios: defaultdict[str, ScenarioTally] = field(default_factory=lambda: defaultdict(ScenarioTally))


@dataclass
class _Place:
    """One place of a remembered answer, and what was counted of it: an outcome counts once, however often it comes."""

    p_click: float
    shadow_p_click: float
    shown: bool = False
    clicked: bool = False


class Shadow:
    """Compares a pipeline with the one that answers; safe to call from threads.

    Args:
        share: of the requests, above 0 and at most 1.
    """

    def __init__(self, pipeline: Pipeline, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of requests for a shadow is above 0 and at most 1, not {share}")
        self.pipeline, self.share = pipeline, share
        self._tally = Tally()
        self._answers: OrderedDict[str, tuple[str, dict[str, _Place]]] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[RankRequest, Ranking, float] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def answered(self, request: RankRequest | RecommendRequest, ranking: Ranking, seconds: float) -> None:
        """Perhaps compare one answer, later; returns at once. An answer that fell short is no measure.

        Args:
            seconds: that it took to read, score and order its candidates.
        """
        if random.random() >= self.share or ranking.degradation is not None or not ranking.poi_ids:
            return
        again = RankRequest(
            context=replace(request.context, time_us=ranking.time_us),
            poi_ids=ranking.candidates,
            objective=request.objective,
        )
        try:
            self._waiting.put_nowait((again, ranking, seconds))
        except queue.Full:
            with self._lock:
                self._tally.skipped += 1

    def happened(self, events: Sequence[FeedbackEvent]) -> None:
        """Count what became of answers that were compared."""
        with self._lock:
            for event in events:
                scenario_id, places = self._answers.get(event.answer.answer_id, ("", {}))
                if (place := places.get(event.poi_id)) is None:
                    continue
                tally = self._tally.scenarios[scenario_id]
                if not place.shown:
                    place.shown = True
                    tally.shown += 1
                    tally.expected += place.p_click
                    tally.shadow_expected += place.shadow_p_click
                if event.outcome in CLICKED and not place.clicked:
                    place.clicked = True
                    tally.clicks += 1

    def tally(self) -> Tally:
        """What was seen so far."""
        with self._lock:
            scenarios = defaultdict(ScenarioTally, {name: replace(t) for name, t in self._tally.scenarios.items()})
            return replace(self._tally, scenarios=scenarios)

    def close(self) -> None:
        """Compare no more."""
        self._waiting.put(None)
        self._thread.join(timeout=10.0)
        self.pipeline.close()

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            request, ranking, seconds = job
            try:
                started = time.perf_counter()
                other = self.pipeline.rank(request)
                self._compare(request.context.scenario_id, ranking, other, seconds, time.perf_counter() - started)
            except Exception:
                log.exception("the bundle in the shadow failed to answer")
                with self._lock:
                    self._tally.failed += 1

    def _compare(
        self, scenario_id: str, ranking: Ranking, other: Ranking, seconds: float, shadow_seconds: float
    ) -> None:
        top = min(TOP, len(ranking.candidates))
        common = len({*ranking.candidates[:top]} & {*other.candidates[:top]})
        theirs = dict(zip(other.poi_ids, other.p_click.tolist(), strict=True))
        pairs = zip(ranking.poi_ids, ranking.p_click.tolist(), strict=True)
        places = {poi_id: _Place(p_click, theirs[poi_id]) for poi_id, p_click in pairs}
        with self._lock:
            self._tally.answers += 1
            self._tally.overlap += common / top
            self._tally.seconds += seconds
            self._tally.shadow_seconds += shadow_seconds
            scenario = self._tally.scenarios[scenario_id]
            scenario.places += len(places)
            scenario.p_click += sum(place.p_click for place in places.values())
            scenario.shadow_p_click += sum(place.shadow_p_click for place in places.values())
            self._answers[ranking.answer_id] = (scenario_id, places)
            while len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
