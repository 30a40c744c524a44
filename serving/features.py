"""Online values -> Arrow: what the store holds for one request, in the very columns that an offline pull has.

What is missing or stale (`serving.online`) is null here; so is knowledge of another version than the bundle's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feature_repo import columns, scenes
from feature_repo.datasets.schema import Schema
from feature_repo.store import view_of
from serving.observe import stage
from serving.online import Read, ServiceMismatch, ValueStatus, View, ViewReading, absent, fetch, open_view
from serving.poi_cache import PoiCache
from serving.request import RequestContext
from trainers.bundle import Bundle
from trainers.knowledge import MISSING_ROW, SCENE_SPACE
from trainers.rows import Rows

# A required field of each entity's description: it is there if and only if the store knows the entity.
DESCRIPTIONS = {columns.USER_ID: ("user_profile", columns.TEXT), columns.POI_ID: ("poi_profile", columns.NAME)}
SCENE_VIEW = "scene"
FEW = 16  # rows, of which Python says as fast as Arrow that all are good
STATUSES = {int(status): status for status in ValueStatus}


@dataclass(frozen=True, kw_only=True)
class SceneAspect:
    """One scene feature of the moment; `known`: met in training, `has_vector`: its sentence was embedded."""

    feature: str
    value: str | None
    known: bool
    has_vector: bool


@dataclass(frozen=True, kw_only=True)
class ContextReading:
    """All that does not depend on a POI: one row of the user's, the scenario's and the scene's columns.

    Attributes:
        unread: names of views that were not asked for.
    """

    time_us: int
    rows: Rows
    user_status: ValueStatus
    scene: tuple[SceneAspect, ...]
    views: tuple[ViewReading, ...]
    unread: tuple[str, ...]

    @property
    def table(self) -> pa.Table:
        """The row as an offline pull would give it."""
        return self.rows.table()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """n rows, and how much of them was there.

    Attributes:
        names: n display names, None where the POI is unknown.
        poi_statuses: n statuses of the POIs' own description.
        unread: names of views that were not asked for.
    """

    rows: Rows
    names: tuple[str | None, ...]
    poi_statuses: tuple[ValueStatus, ...]
    views: tuple[ViewReading, ...]
    unread: tuple[str, ...]

    @property
    def table(self) -> pa.Table:
        """The rows as an offline pull would give them."""
        return self.rows.table()


class FeatureReader:
    """Reads what one bundle needs from the online store, in at most four calls a request.

    Args:
        poi_age_s: how old values of POIs may be that are kept in this process (`serving.poi_cache`); 0: none are kept.
    Raises ServiceMismatch if the store lacks a view or feature of the bundle, or if the code computes one of its scene
    features differently than at training.
    """

    def __init__(self, store: FeatureStore, bundle: Bundle, *, poi_age_s: float = 0.0) -> None:
        self._store = store
        self._bundle = bundle
        check_scenes(bundle.manifest.scene_fingerprints, bundle.schema, f"bundle {bundle.manifest.version}")
        references = [tuple(reference.split(":", 1)) for reference in bundle.manifest.features]
        self._features = frozenset(feature for _, feature in references)
        stored = dict.fromkeys(r for r in [*references, *DESCRIPTIONS.values()] if r[0] != SCENE_VIEW)
        # Knowledge comes from the view of the version that the ranker reads, and that may be one beside the one in use.
        versions = bundle.manifest.knowledge_versions
        pinned = {space: view_of(store, space, version) for space, version in versions.items()}
        self._space_of = {view: space for space, view in pinned.items()}
        views = [
            open_view(store, pinned.get(name, name), [f for v, f in stored if v == name])
            for name in dict.fromkeys(v for v, _ in stored)
        ]
        derived = {columns.CATEGORY_KEY, columns.SPECIALTY_KEY, columns.DAYPART_KEY}
        self._context_views = [v for v in views if v.keys <= {columns.USER_ID, columns.SCENARIO_ID}]
        self._derived_views = [v for v in views if v.keys & derived]
        self._poi_views = [v for v in views if v not in self._context_views and v not in self._derived_views]
        self._pois = None
        if poi_age_s:
            own = [v for v in self._poi_views if v.keys == {columns.POI_ID}]
            self._poi_views = [v for v in self._poi_views if v not in own]
            known = bundle.encoding.vocabularies[columns.POI_ID].values
            self._pois = PoiCache(own, self._fetch_pois, poi_age_s, first=known)
        self._scene_view = None
        if SCENE_SPACE in pinned:
            fields = [columns.knowledge(SCENE_SPACE, name) for name in (columns.ROW, columns.VERSION)]
            self._scene_view = open_view(store, pinned[SCENE_SPACE], fields)

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views that it reads."""
        scene = [self._scene_view] if self._scene_view else []
        own = self._pois.views if self._pois else ()
        found = [*self._context_views, *self._derived_views, *self._poi_views, *own, *scene]
        return tuple(dict.fromkeys(view.name for view in found))

    @property
    def pois_age_s(self) -> float:
        """How long ago the oldest value of a POI that is kept was read; 0 where none are kept."""
        return 0.0 if self._pois is None else self._pois.age_s

    def start(self) -> None:
        """Keep values of POIs fresh in the background, where they are kept."""
        if self._pois is not None:
            self._pois.start()

    def refresh(self) -> None:
        """Read all values of POIs that are kept again, now. Raises what the store raises."""
        if self._pois is not None:
            self._pois.refresh()

    def close(self) -> None:
        """End what runs in the background."""
        if self._pois is not None:
            self._pois.close()

    @stage("read")
    def read_context(
        self, context: RequestContext, time_us: int, *, reach: bool = True, scene: bool = True
    ) -> ContextReading:
        """The user's, scenario's and scene's columns, one row, as of `time_us`.

        Args:
            reach: whether the store is asked; without, its values are missing.
            scene: whether the vectors of the scene's values are looked up.
        Raises:
            StoreUnavailable: it does not answer.
        """
        keys = {columns.USER_ID: [context.user_id], columns.SCENARIO_ID: [context.scenario_id]}
        reads = self._read(self._context_views, keys, time_us, reach)
        stored = _columns_of(reads)
        inputs: dict[str, list[object]] = {scenes.EVENT_TIME_US: [time_us]}
        inputs |= {name: stored[name].to_pylist() for name in scenes.STORED_INPUTS if name in stored}
        inputs |= {name: [value] for name, value in context.scene_inputs.items()}
        values = {name: words[0] for name, words in scenes.evaluate(inputs, self._bundle.schema).items()}
        rows, scene_reads = self._scene_rows(values, time_us, reach) if scene else ({}, [])
        unread = [*self._context_views, *([self._scene_view] if self._scene_view else [])]
        place = context.place
        row = {
            columns.USER_ID: pa.array([context.user_id], pa.string()),
            columns.SCENARIO_ID: pa.array([context.scenario_id], pa.string()),
            scenes.EVENT_TIME_US: pa.array([time_us], pa.int64()),
            columns.LATITUDE: pa.array([place and place.latitude], pa.float64()),
            columns.LONGITUDE: pa.array([place and place.longitude], pa.float64()),
            **{name: array for name, array in stored.items() if name in self._features},
            **{name: pa.array([value], pa.string()) for name, value in values.items()},
            **{_row_column(name): pa.array([row], pa.int64()) for name, row in rows.items()},
        }
        return ContextReading(
            time_us=time_us,
            rows=Rows(row, 1),
            user_status=_statuses(reads, columns.USER_ID)[0],
            scene=tuple(self._aspect(name, value, rows.get(name, MISSING_ROW)) for name, value in values.items()),
            views=tuple(read.summary() for read in [*reads, *scene_reads]),
            unread=() if reach else tuple(view.name for view in unread),
        )

    @stage("read")
    def read_pois(self, context: ContextReading, poi_ids: Sequence[str], *, reach: bool = True) -> Reading:
        """The context's row beside the columns of n POIs; `reach` and errors as those of `read_context`."""
        n = len(poi_ids)
        time_us = context.time_us
        keys = {columns.USER_ID: context.rows[columns.USER_ID].to_pylist(), columns.POI_ID: list(poi_ids)}
        reads = self._read(self._poi_views, keys, time_us, reach)
        if self._pois is not None:
            reads += self._pois.read(poi_ids, time_us, reach=reach)
        stored = _columns_of(reads)
        # An unknown POI has no kind; the empty one has no statistics.
        for key, kind in ((columns.CATEGORY_KEY, columns.CATEGORY), (columns.SPECIALTY_KEY, columns.SPECIALTY)):
            keys[key] = [word or "" for word in stored[kind].to_pylist()]
        keys[columns.DAYPART_KEY] = scenes.daypart_keys(np.array([time_us]), self._bundle.schema.timezone)
        reads += self._read(self._derived_views, keys, time_us, reach)
        own = {name: array for name, array in _columns_of(reads).items() if name in self._features}
        return Reading(
            rows=Rows({columns.POI_ID: pa.array(poi_ids, pa.string()), **context.rows.columns, **own}, n),
            names=tuple(stored[columns.NAME].to_pylist()),
            poi_statuses=_statuses(reads, columns.POI_ID),
            views=context.views + tuple(read.summary() for read in reads),
            unread=context.unread
            + (() if reach else tuple(view.name for view in [*self._poi_views, *self._derived_views])),
        )

    def _read(self, views: Sequence[View], keys: Mapping[str, Sequence[str]], time_us: int, reach: bool) -> list[Read]:
        """Several views in one call, or, without reaching for the store, nothing of them."""
        if reach:
            return self._fetch(views, keys, time_us)
        return [absent(view, max(len(keys[key]) for key in view.keys)) for view in views]

    def _fetch_pois(self, views: Sequence[View], poi_ids: Sequence[str]) -> list[Read]:
        return self._fetch(views, {columns.POI_ID: poi_ids}, None)

    def _fetch(self, views: Sequence[View], keys: Mapping[str, Sequence[str]], time_us: int | None) -> list[Read]:
        """One call for several views, knowledge of other versions left out."""
        reads = fetch(self._store, views, keys, time_us)
        for read in reads:
            self._refuse_other_versions(read)
        return reads

    def _refuse_other_versions(self, read: Read) -> None:
        """Knowledge of another version than the ranker reads, or beyond the vectors that it knows, is missing."""
        space = self._space_of.get(read.view.name)
        if space is None:
            return
        row, known = columns.knowledge(space, columns.ROW), self._bundle.ranker.vectors_known(space)
        version, rows = self._bundle.manifest.knowledge_versions[space], read.values[row]
        versions = read.values[columns.knowledge(space, columns.VERSION)]
        if len(rows) <= FEW:
            said = zip(rows.to_pylist(), versions.to_pylist(), strict=True)
            if all(r is None or (v == version and r < known) for r, v in said):
                return
        read.keep(row, pc.and_(pc.equal(versions, version), pc.less(rows, known)))

    def _scene_rows(
        self, values: Mapping[str, str | None], time_us: int, reach: bool
    ) -> tuple[dict[str, int], list[Read]]:
        """The matrix row of each scene value; nothing where the bundle reads no scene vectors."""
        if self._scene_view is None:
            return {}, []
        said = {name: columns.scene_value(_feature(name), v) for name, v in values.items() if v is not None}
        if not said:
            return dict.fromkeys(values, MISSING_ROW), []
        reads = self._read([self._scene_view], {columns.SCENE_VALUE: list(said.values())}, time_us, reach)
        rows = reads[0].values[columns.knowledge(SCENE_SPACE, columns.ROW)].to_pylist()
        found = {name: row or MISSING_ROW for name, row in zip(said, rows, strict=True)}
        return {name: found.get(name, MISSING_ROW) for name in values}, reads

    def _aspect(self, name: str, value: str | None, row: int) -> SceneAspect:
        vocabulary = self._bundle.encoding.vocabularies.get(name)
        return SceneAspect(
            feature=_feature(name),
            value=value,
            known=vocabulary is not None and value in vocabulary.values,
            has_vector=row != MISSING_ROW,
        )


def _feature(column: str) -> str:
    """The scene feature that a column holds: `scene_daypart` -> `daypart`."""
    return column.removeprefix(columns.scene(""))


def _row_column(column: str) -> str:
    return columns.scene_row(_feature(column))


def check_scenes(fingerprints: Mapping[str, str], schema: Schema, owner: str) -> None:
    """Raises ServiceMismatch if this code computes a scene feature otherwise than when `owner` was trained."""
    now = scenes.fingerprints(schema)
    for name, trained in fingerprints.items():
        if now.get(name) != trained:
            raise ServiceMismatch(
                f"scene feature {name!r} is declared otherwise than when the {owner} was trained ({trained} then, "
                f"{now.get(name)} now): train again, or serve with the declarations of that time"
            )


def _columns_of(reads: Iterable[Read]) -> dict[str, pa.Array]:
    return {name: array for read in reads for name, array in read.values.items()}


def _statuses(reads: Iterable[Read], key: str) -> tuple[ValueStatus, ...]:
    """Per row, whether the description of the entity with this key is there."""
    view, feature = DESCRIPTIONS[key]
    read = next(read for read in reads if read.view.name == view)
    return tuple(STATUSES[status] for status in read.status(feature).tolist())
