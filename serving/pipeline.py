"""Retrieve -> read -> score -> rank: how a request becomes an answer, in plain types and without a wire.

Order of an answer: descending probability of what the objective names; equal ones keep the order of the candidates.
A pipeline that explores draws the order from these probabilities instead (`exploration`). POIs that the store does not
know are scored like any other (through the ranker's unknown bucket) but stand after all that it knows: their score
rests on nothing of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns, geo
from feature_repo.hours import hour_of_week
from feature_repo.stores.packed import StoreUnavailable
from serving.attribution import Signer, new_answer_id
from serving.degrade import (
    ANYBODY,
    SCORED,
    CachedScores,
    Caller,
    Degradation,
    Descent,
    Level,
    Pace,
    Purpose,
    Reason,
    Rehearsals,
    popularity,
    without_scene,
)
from serving.explain import Explanation, KnowledgeTexts, explain
from serving.exploration import Exploration
from serving.features import ContextReading, FeatureReader, Reading, SceneAspect, check_scenes
from serving.guard import StoreGuard, StoreSlow
from serving.keeper import Keeper
from serving.online import ServiceMismatch, ValueStatus, ViewReading
from serving.request import (
    DEFAULT_CANDIDATES,
    DEFAULT_LIMIT,
    ExplainRequest,
    Objective,
    RankRequest,
    RecommendRequest,
    RequestContext,
    Rules,
)
from serving.retriever import Retriever
from serving.scorer import Probabilities, Scorer
from trainers.bundle import Bundle
from trainers.rows import Rows

READS = 32  # of the store at the same time
STORE_SHARE = 0.5  # of the time beyond what scoring needs, for one read: a store that hangs must not take it all
Found = TypeVar("Found", ContextReading, Reading)


class NoIndex(RuntimeError):
    """Recommend was asked of a pipeline that has no index to find candidates in."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """An ordered answer: parallel arrays, best first.

    Attributes:
        candidates: all that were scored, best score first; the answer is the first n of them, or of a drawn order.
        scores: float32 (n,), what the objective names: `p_click` or `p_order`.
        p_order: float32 (n,), probability of a click and then an order.
        distance_km: float64 (n,), NaN where one of the two places is unknown.
        names, categories: n words, None where the POI is unknown.
        answer_id: unique. token: opaque; names this answer when what became of it is reported.
        degradation: how the answer falls short; None: it does not.
        propensities: float64 (n,), the chance of each place to stand where it does, given those above it; (0,) where
            the order was certain.
    """

    candidates: tuple[str, ...]
    poi_ids: tuple[str, ...]
    scores: np.ndarray
    p_click: np.ndarray
    p_order: np.ndarray
    distance_km: np.ndarray
    poi_statuses: tuple[ValueStatus, ...]
    names: tuple[str | None, ...]
    categories: tuple[str | None, ...]
    user_status: ValueStatus
    scene: tuple[SceneAspect, ...]
    views: tuple[ViewReading, ...]
    time_us: int
    answer_id: str
    token: str
    degradation: Degradation | None
    propensities: np.ndarray


class Pipeline:
    """Answers requests with one bundle, one store and, for `recommend`, one index; safe to call from threads.

    Raises ServiceMismatch for an index of another data set, or of scene features that this code computes otherwise.
    """

    def __init__(
        self,
        reader: FeatureReader,
        scorer: Scorer,
        retriever: Retriever | None = None,
        *,
        proven: bool = False,
        signer: Signer | None = None,
        guard: StoreGuard | None = None,
        exploration: Exploration | None = None,
        texts: KnowledgeTexts | None = None,
        keepers: Sequence[Keeper] = (),
    ) -> None:
        """
        Args:
            signer: of attribution tokens; None: one whose tokens nobody else takes.
            proven: whether a certificate says that this bundle's online and offline values agree; answers repeat it.
            guard: of the store; None: one of its own.
            exploration: how orders are drawn; None: they are those of the scores.
            texts: behind vectors, for explanations; None: they do without.
            keepers: told of every answer that falls short of nothing.
        """
        self._texts = texts
        self._guard = guard or StoreGuard(READS)
        self._pace = Pace(knows_scenes=bool(scorer.bundle.encoding.scene_features))
        self._rehearsals = Rehearsals()
        self._cached = CachedScores()
        self._exploration = exploration
        self._keepers = tuple(keepers)
        self.signer = signer or Signer()
        self.bundle = scorer.bundle
        self.proven = proven
        self.retriever = retriever
        self.reader = reader
        self._scorer = scorer
        if retriever is not None:
            _check_index(retriever, self.bundle)
        self._rules = Rules(self.bundle.schema, self.bundle.encoding.vocabularies[columns.SCENARIO_ID].values)

    @property
    def index_version(self) -> str:
        """Empty without an index."""
        return "" if self.retriever is None else self.retriever.version

    def answer(self, request: RankRequest | RecommendRequest, caller: Caller = ANYBODY) -> Ranking:
        """`rank` or `recommend`, by what is asked."""
        return self.rank(request, caller) if isinstance(request, RankRequest) else self.recommend(request, caller)

    def rank(self, request: RankRequest, caller: Caller = ANYBODY) -> Ranking:
        """Order the request's own candidates. Raises InvalidRequest, Gone."""
        self._rules.check_rank(request)
        descent = Descent()
        context = self._read_context(request.context, ("pois",), len(request.poi_ids), caller, descent)
        limit = request.limit or len(request.poi_ids)
        return self._ordered(context, request, request.poi_ids, limit, caller, descent)

    def recommend(self, request: RecommendRequest, caller: Caller = ANYBODY) -> Ranking:
        """Order what the scenario may show; empty where filters leave none. Raises InvalidRequest, NoIndex, Gone."""
        self._rules.check_recommend(request)
        if self.retriever is None:
            raise NoIndex("this server has no index: build one with `scenerank index`, or send candidates to Rank")
        descent, wanted = Descent(), request.candidates or DEFAULT_CANDIDATES
        context = self._read_context(request.context, ("retrieve", "pois"), wanted, caller, descent)
        with self._pace.timed("retrieve", wanted):
            found = self.retriever.retrieve(
                context.table,
                wanted,
                near=_near(request),
                open_hour_of_week=self._hour_of_week(context.time_us) if request.only_open else None,
            )
        return self._ordered(context, request, found.poi_ids, request.limit or DEFAULT_LIMIT, caller, descent)

    def ask_store(self) -> bool:
        """One small read of the online store, of a user that nobody is; raises what the store raises."""
        nobody = RequestContext(user_id="-", scenario_id=self._rules.scenarios[0])
        self.reader.read_context(nobody, time.time_ns() // 1000)
        return True

    def explain(self, request: ExplainRequest, caller: Caller = ANYBODY) -> Explanation:
        """Which causes moved one POI's score. Raises InvalidRequest, Gone, and StoreUnavailable: what is not known
        moved nothing, and an explanation that did not say so would be wrong."""
        self._rules.check_explain(request)

        def read() -> tuple[ContextReading, Reading]:
            found = self.reader.read_context(request.context, _time_us(request.context))
            return found, self.reader.read_pois(found, (request.poi_id,))

        caller.check()
        found = self._guard.ask(read, caller.left_s())
        caller.check()
        return explain(request, *found, self._scorer, self._texts)

    def start(self) -> None:
        """Begin what runs in the background."""
        self.reader.start()
        for keeper in self._keepers:
            keeper.start()

    def close(self) -> bool:
        """Write what is to be kept of the last answers, end what runs in the background; whether no read hangs."""
        self._rehearsals.close()
        self.reader.close()
        for keeper in self._keepers:
            keeper.close()
        return self._guard.close()

    def _read_context(
        self, context: RequestContext, then: tuple[str, ...], n: int, caller: Caller, descent: Descent
    ) -> ContextReading:
        """`then`: the stages between this one and scoring."""
        self._pace.come_down(descent, caller.left_s(), ("context", *then), n)
        time_us, scene = _time_us(context), descent.level < Level.WITHOUT_SCENE

        def read(reach: bool) -> ContextReading:
            return self.reader.read_context(context, time_us, reach=reach, scene=scene)

        return self._from_store("context", read, n, caller, descent)

    def _ordered(
        self,
        context: ContextReading,
        request: RankRequest | RecommendRequest,
        poi_ids: Sequence[str],
        limit: int,
        caller: Caller,
        descent: Descent,
    ) -> Ranking:
        answer_id = new_answer_id()
        token = self._token(request.context, context.time_us, answer_id)
        if not poi_ids:
            return _empty(context, answer_id, token, descent.result())

        def read(reach: bool) -> Reading:
            return self.reader.read_pois(context, poi_ids, reach=reach)

        reading = self._from_store("pois", read, len(poi_ids), caller, descent)
        distance_km = _distances(reading)
        caller.check()
        self._pace.come_down(descent, caller.left_s(), (), len(poi_ids))
        scored = self._scored(request.context.scenario_id, poi_ids, reading, distance_km, descent)
        if caller.purpose is Purpose.REHEARSAL and self.bundle.encoding.scene_features:  # both rungs are rehearsed
            self._modelled(reading.rows, Level.WITHOUT_SCENE)
        if descent.level > Level.FULL_MODEL:
            # All stages, those of both rungs, so that their times stay known.
            self._rehearsals.perhaps(partial(self.answer, request, Caller(purpose=Purpose.REHEARSAL)))
        degradation = descent.result()
        if degradation is None and caller.purpose is Purpose.ANSWER:
            for keeper in self._keepers:
                keeper.answered(request.context, context, reading)
        scores = scored.p_order if request.objective is Objective.ORDER else scored.p_click
        by_score = order(scores, reading.poi_statuses)
        shown, propensities = self._drawn(by_score, scores, reading.poi_statuses, answer_id)
        best = shown[:limit]
        return Ranking(
            candidates=tuple(poi_ids[i] for i in by_score.tolist()),
            poi_ids=tuple(poi_ids[i] for i in best.tolist()),
            scores=scores[best],
            p_click=scored.p_click[best],
            p_order=scored.p_order[best],
            distance_km=distance_km[best],
            poi_statuses=tuple(reading.poi_statuses[i] for i in best),
            names=tuple(reading.names[i] for i in best),
            categories=tuple(reading.rows[columns.CATEGORY].take(pa.array(best)).to_pylist()),
            user_status=context.user_status,
            scene=context.scene,
            views=tuple(sorted(reading.views, key=lambda v: v.view)),
            time_us=context.time_us,
            answer_id=answer_id,
            token=token,
            degradation=degradation,
            propensities=propensities[:limit],
        )

    def _drawn(
        self, by_score: np.ndarray, scores: np.ndarray, statuses: tuple[ValueStatus, ...], answer_id: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """All candidates in the order that is shown, and their propensities."""
        if self._exploration is None:
            return by_score, np.zeros(0)
        drawn = order(self._exploration.perturbed(scores, answer_id), statuses)
        known = np.array([statuses[i] is ValueStatus.PRESENT for i in drawn])
        return drawn, self._exploration.propensities(scores[drawn], known)

    def _from_store(self, stage: str, read: Callable[[bool], Found], n: int, caller: Caller, descent: Descent) -> Found:
        """What a stage reads; without reaching for the store where that is away, slow, or takes too long to ask."""
        caller.check()
        if descent.reaches_store:
            left_s = caller.left_s()
            if left_s is not None:
                left_s = STORE_SHARE * (left_s - self._pace.needs_s((SCORED[descent.level],), n))
            try:
                with self._pace.timed(stage, n):
                    return self._guard.ask(lambda: read(True), left_s)
            except StoreUnavailable as error:
                slow = isinstance(error, StoreSlow)
                descent.to(descent.level, Reason.STORE_SLOW if slow else Reason.STORE_UNAVAILABLE)
                descent.reaches_store = False
        found = read(False)
        descent.to(descent.level, Reason.DEADLINE, found.unread)
        return found

    def _scored(
        self, scenario_id: str, poi_ids: Sequence[str], reading: Reading, distance_km: np.ndarray, descent: Descent
    ) -> Probabilities:
        """The scores of the rung that the answer stands on."""
        encoding = self.bundle.encoding
        if descent.level <= Level.WITHOUT_SCENE:
            scored = self._modelled(reading.rows, descent.level)
            if descent.result() is None:
                self._cached.keep(scenario_id, poi_ids, scored.p_click, scored.p_order)
            return scored
        found = self._cached.find(scenario_id, poi_ids)
        if found is None:
            descent.to(Level.POPULARITY, Reason.DEADLINE)
            found = popularity(reading.rows, encoding, distance_km)
        return Probabilities(p_click=found[0], p_order=found[1])

    def _modelled(self, rows: Rows, level: Level) -> Probabilities:
        with self._pace.timed(SCORED[level], len(rows)):
            return self._scorer.score(without_scene(rows, self.bundle.encoding) if level > Level.FULL_MODEL else rows)

    def _token(self, context: RequestContext, time_us: int, answer_id: str) -> str:
        manifest, dataset = self.bundle.manifest, self.bundle.schema.identity
        return self.signer.token(manifest.version, dataset, replace(context, time_us=time_us), answer_id)

    def _hour_of_week(self, time_us: int) -> int:
        return int(hour_of_week(np.array([time_us]), self.bundle.schema.timezone)[0])


def order(scores: np.ndarray, statuses: tuple[ValueStatus, ...]) -> np.ndarray:
    """Positions, best first: known POIs before others, then descending score, then the order given.

    >>> there, gone = ValueStatus.PRESENT, ValueStatus.MISSING
    >>> order(np.array([0.1, 0.3, 0.9, 0.3]), (there, there, gone, there)).tolist()
    [1, 3, 0, 2]
    """
    unknown = np.array([status is not ValueStatus.PRESENT for status in statuses])
    return np.lexsort((-scores, unknown))


def _check_index(retriever: Retriever, bundle: Bundle) -> None:
    manifest = retriever.artefact.manifest
    if manifest.dataset != bundle.schema.dataset:
        raise ServiceMismatch(
            f"the index holds POIs of {manifest.dataset!r}, the bundle ranks those of {bundle.schema.dataset!r}: "
            "build the index of the same workspace"
        )
    check_scenes(manifest.scene_fingerprints, bundle.schema, "index")


def _time_us(context: RequestContext) -> int:
    """The request's, or now."""
    return time.time_ns() // 1000 if context.time_us is None else context.time_us


def _distances(reading: Reading) -> np.ndarray:
    """Kilometres between the user and each POI, NaN where unknown."""
    places = (columns.LATITUDE, columns.LONGITUDE, columns.POI_LATITUDE, columns.POI_LONGITUDE)
    degrees = (pc.fill_null(reading.rows[name], float("nan")).to_numpy() for name in places)
    return geo.distance_km(*degrees)


def _near(request: RecommendRequest) -> tuple[float, float, float] | None:
    place = request.context.place
    if request.radius_km is None or place is None or place.latitude is None or place.longitude is None:
        return None
    return place.latitude, place.longitude, request.radius_km


def _empty(context: ContextReading, answer_id: str, token: str, degradation: Degradation | None) -> Ranking:
    nothing = np.zeros(0, dtype=np.float32)
    return Ranking(
        candidates=(),
        poi_ids=(),
        scores=nothing,
        p_click=nothing,
        p_order=nothing,
        distance_km=nothing.astype(np.float64),
        poi_statuses=(),
        names=(),
        categories=(),
        user_status=context.user_status,
        scene=context.scene,
        views=tuple(sorted(context.views, key=lambda v: v.view)),
        time_us=context.time_us,
        answer_id=answer_id,
        token=token,
        degradation=degradation,
        propensities=np.zeros(0),
    )
