"""A bundle in the shadow: it scores a share of the requests beside the one that answers, and nobody waits for it.

What it would have made of the same candidates is compared with what was answered: the overlap of the first ten places,
the probabilities by scenario, the time; and, where feedback comes, both against the clicks. What was seen counts for
one pair of bundles: when another one answers, it begins anew. One thread works for it; what comes while it is busy is
skipped, and so the shadow takes one core at most.
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

import numpy as np

from serving.degrade import Caller, Purpose
from serving.feedback import FeedbackEvent, Outcome
from serving.pipeline import Pipeline, Ranking
from serving.request import RankRequest, RecommendRequest

log = logging.getLogger(__name__)
WAITING = 4  # requests
TOP = 10
REMEMBERED, ANSWERS = 200_000, 20_000  # places, and answers of them, that feedback may still come for
CLICKED = (Outcome.CLICKED, Outcome.ORDERED)
COMPARED = Caller(purpose=Purpose.COMPARISON)


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
    """What was seen of one pair of bundles."""

    answers: int = 0
    failed: int = 0
    skipped: int = 0
    overlap: float = 0.0
    seconds: float = 0.0
    shadow_seconds: float = 0.0
    scenarios: defaultdict[str, ScenarioTally] = field(default_factory=lambda: defaultdict(ScenarioTally))


@dataclass(frozen=True)
class _Answer:
    """A remembered answer, and what was counted of its n places: an outcome counts once, however often it comes.

    Attributes:
        p_click, shadow_p_click: float32 (n,).
        shown, clicked: bool (n,).
    """

    scenario_id: str
    poi_ids: tuple[str, ...]
    p_click: np.ndarray
    shadow_p_click: np.ndarray
    shown: np.ndarray
    clicked: np.ndarray


@dataclass(frozen=True)
class _Job:
    """One answer to compare; `against` is the version of the bundle that gave it."""

    against: str
    request: RankRequest
    ranking: Ranking
    seconds: float


class Shadow:
    """Compares a pipeline with the one that answers; safe to call from threads.

    Args:
        share: of the requests, above 0 and at most 1.
    """

    def __init__(self, pipeline: Pipeline, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of requests for a shadow is above 0 and at most 1, not {share}")
        self.pipeline, self.share = pipeline, share
        self._against = ""
        self._tally = Tally()
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._places = 0  # of all these answers
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Job | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def answered(self, request: RankRequest | RecommendRequest, ranking: Ranking, seconds: float, against: str) -> None:
        """Perhaps compare one answer, later; returns at once. An answer that fell short is no measure.

        Args:
            seconds: that it took to read, score and order its candidates.
            against: version of the bundle that answered.
        """
        with self._lock:
            self._stand_beside(against)
        if random.random() >= self.share or ranking.degradation is not None or not ranking.poi_ids:
            return
        again = RankRequest(
            context=replace(request.context, time_us=ranking.time_us),
            poi_ids=ranking.candidates,
            objective=request.objective,
        )
        try:
            self._waiting.put_nowait(_Job(against, again, ranking, seconds))
        except queue.Full:
            with self._lock:
                self._tally.skipped += 1

    def happened(self, events: Sequence[FeedbackEvent]) -> None:
        """Count what became of answers that were compared."""
        with self._lock:
            for event in events:
                answer = self._answers.get(event.answer.answer_id)
                if answer is None or event.poi_id not in answer.poi_ids:
                    continue
                tally, at = self._tally.scenarios[answer.scenario_id], answer.poi_ids.index(event.poi_id)
                if not answer.shown[at]:
                    answer.shown[at] = True
                    tally.shown += 1
                    tally.expected += float(answer.p_click[at])
                    tally.shadow_expected += float(answer.shadow_p_click[at])
                if event.outcome in CLICKED and not answer.clicked[at]:
                    answer.clicked[at] = True
                    tally.clicks += 1

    def tally(self, against: str) -> Tally:
        """What was seen so far of this and the bundle of that version, which answers."""
        with self._lock:
            self._stand_beside(against)
            scenarios = defaultdict(ScenarioTally, {name: replace(t) for name, t in self._tally.scenarios.items()})
            return replace(self._tally, scenarios=scenarios)

    def close(self) -> None:
        """Compare no more."""
        self._waiting.put(None)
        self._thread.join(timeout=10.0)
        self.pipeline.close()

    def _stand_beside(self, against: str) -> None:
        """Begin anew where another bundle answers by now."""
        if against != self._against:
            self._against, self._tally = against, Tally()
            self._answers.clear()
            self._places = 0

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                started = time.perf_counter()
                other = self.pipeline.rank(job.request, COMPARED)
                self._compare(job, other, time.perf_counter() - started)
            except Exception:
                log.exception("the bundle in the shadow failed to answer")
                with self._lock:
                    self._tally.failed += job.against == self._against

    def _compare(self, job: _Job, other: Ranking, seconds: float) -> None:
        ranking, top = job.ranking, min(TOP, len(job.ranking.candidates))
        common = len({*ranking.candidates[:top]} & {*other.candidates[:top]})
        theirs = dict(zip(other.poi_ids, other.p_click, strict=True))
        shadow_p_click = np.array([theirs[poi_id] for poi_id in ranking.poi_ids])
        nothing = np.zeros(len(ranking.poi_ids), dtype=bool)
        scenario_id = job.request.context.scenario_id
        answer = _Answer(scenario_id, ranking.poi_ids, ranking.p_click, shadow_p_click, nothing, nothing.copy())
        with self._lock:
            if job.against != self._against:
                return
            if other.degradation is not None:
                self._tally.skipped += 1
                return
            self._tally.answers += 1
            self._tally.overlap += common / top
            self._tally.seconds += job.seconds
            self._tally.shadow_seconds += seconds
            scenario = self._tally.scenarios[scenario_id]
            scenario.places += len(answer.poi_ids)
            scenario.p_click += float(answer.p_click.sum(dtype=np.float64))
            scenario.shadow_p_click += float(shadow_p_click.sum(dtype=np.float64))
            self._remember(ranking.answer_id, answer)

    def _remember(self, answer_id: str, answer: _Answer) -> None:
        self._answers[answer_id] = answer
        self._places += len(answer.poi_ids)
        while self._places > REMEMBERED or len(self._answers) > ANSWERS:
            _, oldest = self._answers.popitem(last=False)
            self._places -= len(oldest.poi_ids)
