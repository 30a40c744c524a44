"""Retrieve -> read -> score -> rank: how a request becomes an answer, in plain types and without a wire.

Order of an answer: descending probability of what the objective names; equal ones keep the order of the candidates.
POIs that the store does not know are scored like any other (through the ranker's unknown bucket) but stand after all
that it knows: their score rests on nothing of their own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns, geo
from feature_repo.hours import hour_of_week
from serving.attribution import Signer
from serving.features import ContextReading, FeatureReader, Reading, SceneAspect, check_scenes
from serving.online import ServiceMismatch, ValueStatus, ViewReading
from serving.request import (
    DEFAULT_CANDIDATES,
    DEFAULT_LIMIT,
    Objective,
    RankRequest,
    RecommendRequest,
    RequestContext,
    Rules,
)
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.served import ServedLog
from trainers.bundle import Bundle


class NoIndex(RuntimeError):
    """Recommend was asked of a pipeline that has no index to find candidates in."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """An ordered answer: parallel arrays, best first.

    Attributes:
        scores: float32 (n,), what the objective names: `p_click` or `p_order`.
        p_order: float32 (n,), probability of a click and then an order.
        distance_km: float64 (n,), NaN where one of the two places is unknown.
        names, categories: n words, None where the POI is unknown.
        token: opaque and unique; names this answer when what became of it is reported.
    """

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
    token: str


class Pipeline:
    """Answers requests with one bundle, one store and, for `recommend`, one index; safe to call from threads.

    Raises ServiceMismatch if the index is of another data set than the bundle, or was built with other scene features
    than this code computes.
    """

    def __init__(
        self,
        reader: FeatureReader,
        scorer: Scorer,
        retriever: Retriever | None = None,
        *,
        proven: bool = False,
        served: ServedLog | None = None,
        signer: Signer | None = None,
    ) -> None:
        """
        Args:
            signer: of attribution tokens; None: one whose tokens nobody else takes.
            proven: whether a certificate says that this bundle's online and offline values agree; answers repeat it.
            served: keeps what a sample of the answers was made of.
        """
        self._served = served
        self.signer = signer or Signer()
        self.bundle = scorer.bundle
        self.proven = proven
        self.retriever = retriever
        self._reader = reader
        self._scorer = scorer
        if retriever is not None:
            _check_index(retriever, self.bundle)
        self._rules = Rules(self.bundle.schema, self.bundle.encoding.vocabularies[columns.SCENARIO_ID].values)

    @property
    def index_version(self) -> str:
        """Empty without an index."""
        return "" if self.retriever is None else self.retriever.version

    def rank(self, request: RankRequest) -> Ranking:
        """Order the request's own candidates. Raises InvalidRequest."""
        self._rules.check_rank(request)
        context = self._read_context(request.context)
        return self._ordered(context, request, request.poi_ids, request.limit or len(request.poi_ids))

    def recommend(self, request: RecommendRequest) -> Ranking:
        """Find candidates and order them; empty where the filters leave none. Raises InvalidRequest, NoIndex."""
        self._rules.check_recommend(request)
        if self.retriever is None:
            raise NoIndex("this server has no index: build one with `scenerank index`, or send candidates to Rank")
        context = self._read_context(request.context)
        found = self.retriever.retrieve(
            context.table,
            request.candidates or DEFAULT_CANDIDATES,
            near=_near(request),
            open_hour_of_week=self._hour_of_week(context.time_us) if request.only_open else None,
        )
        return self._ordered(context, request, found.poi_ids, request.limit or DEFAULT_LIMIT)

    def ask_store(self) -> bool:
        """One small read of the online store, of a user that nobody is; raises what the store raises."""
        nobody = RequestContext(user_id="-", scenario_id=self._rules.scenarios[0])
        self._reader.read_context(nobody, time.time_ns() // 1000)
        return True

    def close(self) -> None:
        """Write what is to be kept of the last answers."""
        if self._served is not None:
            self._served.close()

    def _read_context(self, context: RequestContext) -> ContextReading:
        time_us = time.time_ns() // 1000 if context.time_us is None else context.time_us
        return self._reader.read_context(context, time_us)

    def _ordered(
        self, context: ContextReading, request: RankRequest | RecommendRequest, poi_ids: Sequence[str], limit: int
    ) -> Ranking:
        if not poi_ids:
            return _empty(context, self._token(request.context, context.time_us))
        reading = self._reader.read_pois(context, poi_ids)
        if self._served is not None:
            self._served.answered(request.context, reading.table)
        scored = self._scorer.score(reading.table)
        scores = scored.p_order if request.objective is Objective.ORDER else scored.p_click
        best = order(scores, reading.poi_statuses)[:limit]
        return Ranking(
            poi_ids=tuple(poi_ids[i] for i in best),
            scores=scores[best],
            p_click=scored.p_click[best],
            p_order=scored.p_order[best],
            distance_km=_distances(reading)[best],
            poi_statuses=tuple(reading.poi_statuses[i] for i in best),
            names=tuple(reading.names[i] for i in best),
            categories=tuple(reading.table[columns.CATEGORY].take(pa.array(best)).to_pylist()),
            user_status=context.user_status,
            scene=context.scene,
            views=tuple(sorted(reading.views, key=lambda v: v.view)),
            time_us=context.time_us,
            token=self._token(request.context, context.time_us),
        )

    def _token(self, context: RequestContext, time_us: int) -> str:
        bundle = self.bundle
        return self.signer.token(bundle.manifest.version, bundle.schema.identity, replace(context, time_us=time_us))

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


def _distances(reading: Reading) -> np.ndarray:
    """Kilometres between the user and each POI, NaN where unknown."""
    places = (columns.LATITUDE, columns.LONGITUDE, columns.POI_LATITUDE, columns.POI_LONGITUDE)
    degrees = (pc.fill_null(reading.table[name], float("nan")).to_numpy() for name in places)
    return geo.distance_km(*degrees)


def _near(request: RecommendRequest) -> tuple[float, float, float] | None:
    place = request.context.place
    if request.radius_km is None or place is None or place.latitude is None or place.longitude is None:
        return None
    return place.latitude, place.longitude, request.radius_km


def _empty(context: ContextReading, token: str) -> Ranking:
    nothing = np.zeros(0, dtype=np.float32)
    return Ranking(
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
        token=token,
    )
