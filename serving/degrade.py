"""The ladder under pressure: what is left out of an answer when the time that is left, or the store, does not give all.

    full model -> without scene -> cached scores -> popularity near the place

How long each stage takes is learned from the answers themselves, by the number of rows; of one that answers do without,
from rehearsals. An answer says which rung it stands on, why, and what was missing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns
from serving.admission import Gone
from trainers.encoding import Encoding, kept_statistics, smoothed
from trainers.rows import Rows

log = logging.getLogger(__name__)
SCENE = "scene"
KEPT = 0.9  # share of the mean of a stage's times that one more leaves as it was
HALVED_S = 1.0  # in which a mean that nothing was added to loses half of that share, where the next time is shorter
SAFETY = 1.5  # a stage is begun if its mean time fits so many times into what is left
REST_S = 1.0  # between rehearsals
REST = 9.0  # and so many times what the last one took: a tenth of a core
MOST_SCORES = 200_000  # cached; the ones used longest ago go first


class Level(IntEnum):
    """How an answer was scored; the numbers are those of the wire contract."""

    FULL_MODEL = 1
    WITHOUT_SCENE = 2
    CACHED_SCORES = 3
    POPULARITY = 4


SCORED = {Level.FULL_MODEL: "score", Level.WITHOUT_SCENE: "score without scene"}  # stages


class Reason(IntEnum):
    """Why it is not all that it could be; the numbers are those of the wire contract."""

    DEADLINE = 1
    STORE_UNAVAILABLE = 2
    STORE_SLOW = 3


@dataclass(frozen=True)
class Degradation:
    """How an answer falls short.

    Attributes:
        missing: names of the views that were not read, and `scene` where the scene was left out.
    """

    level: Level
    reason: Reason
    missing: tuple[str, ...]


class Descent:
    """How far one answer has come down the ladder; it never goes up again."""

    def __init__(self) -> None:
        self.level = Level.FULL_MODEL
        self.reaches_store = True
        self._reason: Reason | None = None
        self._missing: dict[str, None] = {}

    def to(self, level: Level, reason: Reason, missing: Iterable[str] = ()) -> None:
        """Stand on this rung, or stay on a lower one; the first reason is the one that is told."""
        self.level = max(self.level, level)
        self._reason = self._reason or reason
        self._missing |= dict.fromkeys(missing)

    def result(self) -> Degradation | None:
        """None for an answer that lacks nothing."""
        if self._reason is None:
            return None
        return Degradation(self.level, self._reason, tuple(sorted(self._missing)))


class Purpose(Enum):
    """What an answer is for: somebody who gets to see it, a comparison with another one, or the times of its stages."""

    ANSWER = auto()
    COMPARISON = auto()
    REHEARSAL = auto()


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who waits for an answer.

    Args:
        deadline: by the monotonic clock; None: waits as long as it takes.
        is_wanted: whether the caller still waits.
        purpose: what the answer is for; of one that nobody gets to see nothing is kept.
    """

    deadline: float | None = None
    is_wanted: Callable[[], bool] = field(default=lambda: True)
    purpose: Purpose = Purpose.ANSWER

    def left_s(self) -> float | None:
        """Until the deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def check(self) -> None:
        """Raises Gone where nobody waits any more."""
        if not self.is_wanted():
            raise Gone("the caller left")


ANYBODY = Caller()


class Pace:
    """Mean seconds of each stage by the size of a request, the last ones above all; safe to call from threads.

    Args:
        knows_scenes: whether the ranker does; one that does not has no rung without them.
    """

    def __init__(self, *, knows_scenes: bool) -> None:
        self._rungs = tuple(SCORED) if knows_scenes else (Level.FULL_MODEL,)
        self._means: dict[tuple[str, int], tuple[float, float]] = {}  # seconds, and when one was added last
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: str, rows: int) -> Iterator[None]:
        """Learn from the block, unless it fails."""
        started = time.perf_counter()
        yield
        now = time.perf_counter()
        size, seconds = (stage, rows.bit_length()), now - started
        with self._lock:
            mean_s, then = self._means.get(size, (seconds, now))
            # What is slow once after a rest may have been cold; what is fast is fast.
            kept = KEPT * (0.5 ** (max(now - then, 0.0) / HALVED_S) if seconds < mean_s else 1.0)
            self._means[size] = kept * mean_s + (1 - kept) * seconds, now

    def needs_s(self, stages: Sequence[str], rows: int) -> float:
        """What these stages are to be given; what was never measured needs nothing."""
        return SAFETY * sum(self._means.get((stage, rows.bit_length()), (0.0, 0.0))[0] for stage in stages)

    def come_down(self, descent: Descent, left_s: float | None, stages: Sequence[str], rows: int) -> None:
        """To the first rung whose stages, these and scoring, fit into the time that is left; None: there is no end."""
        if left_s is None:
            return
        for level in self._rungs:
            if level >= descent.level and left_s >= self.needs_s((*stages, SCORED[level]), rows):
                if level > descent.level:
                    descent.to(level, Reason.DEADLINE, (SCENE,))
                return
        descent.to(Level.CACHED_SCORES, Reason.DEADLINE, (SCENE,) if len(self._rungs) > 1 else ())
        descent.reaches_store = False


class Rehearsals:
    """Requests that had to do without a stage, once more for nobody and without a deadline; safe to call from threads.

    What is left out is not timed: what was slow once would be left out for good. And a try with a caller's own request
    would miss the deadline where it is as slow as it was. One at a time, on a thread of its own, and then a rest.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rehearsal")
        self._next = 0.0  # by the monotonic clock
        self._is_closed = False
        self._lock = threading.Lock()

    def perhaps(self, answer: Callable[[], object]) -> None:
        """Rehearse an answer, if it is time; returns at once."""
        with self._lock:
            if time.monotonic() >= self._next and not self._is_closed:
                self._next = math.inf
                self._pool.submit(self._rehearse, answer)

    def close(self) -> None:
        """No more of them; one under way goes on."""
        with self._lock:
            self._is_closed = True
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _rehearse(self, answer: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            answer()
        except Exception as error:  # nobody is to be told
            log.debug("a rehearsal failed: %s", type(error).__name__)
        ended = time.monotonic()
        with self._lock:
            self._next = ended + max(REST_S, REST * (ended - began))


class CachedScores:
    """The last scores of each POI in each scenario, whoever asked; safe to call from threads."""

    def __init__(self, most: int = MOST_SCORES) -> None:
        self._scores: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        self._most = most
        self._lock = threading.Lock()

    def keep(self, scenario_id: str, poi_ids: Sequence[str], p_click: np.ndarray, p_order: np.ndarray) -> None:
        with self._lock:
            for poi_id, scores in zip(poi_ids, zip(p_click.tolist(), p_order.tolist(), strict=True), strict=True):
                self._scores[scenario_id, poi_id] = scores
                self._scores.move_to_end((scenario_id, poi_id))
            while len(self._scores) > self._most:
                self._scores.popitem(last=False)

    def find(self, scenario_id: str, poi_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """float32 (n,) of a click and of an order, a POI that has none at the mean of the others; None if all lack."""
        with self._lock:
            found = [self._scores.get((scenario_id, poi_id)) for poi_id in poi_ids]
        known = np.array([scores for scores in found if scores is not None], dtype=np.float32)
        if not len(known):
            return None
        scores = np.tile(known.mean(axis=0), (len(found), 1))
        scores[[at for at, of_poi in enumerate(found) if of_poi is not None]] = known
        return scores[:, 0], scores[:, 1]


def popularity(rows: Rows, encoding: Encoding, distance_km: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n,) of a click and of an order: the POI's own smoothed rates, less the farther away it is.

    A place at the distance that the data set calls near counts half of one at the door; one of unknown distance as one
    that is near.
    """
    windows = [days for owner, days in kept_statistics(rows.column_names, columns.COUNTS) if owner == "poi"]
    shown, clicked, ordered = np.zeros((3, len(rows)))
    if windows:
        names = [columns.statistic("poi", count, max(windows)) for count in columns.COUNTS]
        shown, clicked, ordered = (pc.fill_null(rows[name].cast(pa.float64()), 0.0).to_numpy() for name in names)
    click = smoothed(clicked, shown, encoding.rates[0])
    order = smoothed(ordered, clicked, encoding.rates[1])
    near = 1.0 / (1.0 + np.nan_to_num(distance_km, nan=encoding.near_km) / encoding.near_km)
    return (click * near).astype(np.float32), (click * near * order).astype(np.float32)


def without_scene(rows: Rows, encoding: Encoding) -> Rows:
    """The rows with a scene of which nothing is known."""
    unknown = {columns.scene(name): pa.nulls(1, pa.string()) for name in encoding.scene_features}
    no_vector = {columns.scene_row(name): pa.array([0], pa.int64()) for name in encoding.scene_features}
    return Rows({**rows.columns, **unknown, **no_vector}, len(rows))
