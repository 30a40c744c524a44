"""Which causes moved one place's score: each is taken away in turn, and what is left is scored, all in one batch.

Taken away means null, which is what the model sees where a request does not say it, where the store has no value, or
where a value is stale. Columns that come from one thing go together: a scene value with its vector's row (and with the
stored state that it was made of), all counts of one owner, the last places with their times. So a row without its
weather is the row of the same request sent without weather, and each effect is the exact difference of two scores that
Rank gives.

Effects are no shares: of two causes that say the same neither may be missed alone, and where one works through another
both are counted. What a model would do without the scenario cannot be asked, as no request is without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns, geo, hours, scenes
from feature_repo.workspace import Workspace
from serving.features import ContextReading, Reading, SceneAspect
from serving.online import ValueStatus, ViewReading
from serving.request import ExplainRequest, Objective
from serving.scorer import Scorer
from trainers.bundle import Bundle
from trainers.encoding import kept_statistics
from trainers.knowledge import MISSING_ROW, SCENE_SPACE, served_from

NAMED_POIS = 5  # of the last places, that a value names
US_PER_HOUR = 3.6e9


class CauseKind(Enum):
    """What a cause is."""

    SCENE_VALUE = "scene value"
    KNOWLEDGE = "knowledge"
    FEATURE = "feature"


class CauseLevel(Enum):
    """Whose a cause is."""

    MOMENT = "moment"
    USER = "user"
    POI = "POI"
    SCENARIO = "scenario"
    USER_AND_POI = "user and POI"


LEVELS = {columns.POI_ID: CauseLevel.POI, columns.USER_ID: CauseLevel.USER, columns.SCENARIO_ID: CauseLevel.SCENARIO}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One thing that the model read.

    Attributes:
        name: of the scene feature, the vector space, the column or the view of counts.
        value: as a person reads it; empty for knowledge of which no words were kept.
        text: that a language model read to make the vector; empty where there is none, or its file is not here.
        columns: that are null without it.
    """

    kind: CauseKind
    level: CauseLevel
    name: str
    value: str
    text: str = ""
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One POI's scores and what moved the one that the objective names.

    Attributes:
        causes: the largest effects first, whatever their sign.
        effects: float32 (n,), the score less what it is without the cause: above 0 where the cause raised it.
    """

    poi_id: str
    score: float
    p_click: float
    p_order: float
    causes: tuple[Cause, ...]
    effects: np.ndarray
    poi_status: ValueStatus
    name: str | None
    category: str | None
    user_status: ValueStatus
    scene: tuple[SceneAspect, ...]
    views: tuple[ViewReading, ...]
    time_us: int


class KnowledgeTexts:
    """The texts behind vectors, from the knowledge files of a workspace, by space and row of given versions."""

    def __init__(self, workspace: Workspace, versions: Mapping[str, str]) -> None:
        self._workspace, self._versions = workspace, versions

    def of(self, space: str, row: int) -> tuple[str, str]:
        """The text, and of prompted knowledge the words that the model found apt; empty where no file says so."""
        version = self._versions[space]
        key, version_of = columns.knowledge(space, columns.ROW), columns.knowledge(space, columns.VERSION)
        wanted = [columns.knowledge(space, name) for name in (columns.TEXT, columns.WORDS)]
        for path in (served_from(self._workspace, space, version), served_from(self._workspace, space)):
            if path.is_file():
                there = [name for name in wanted if name in pq.read_schema(path).names]
                found = pq.read_table(path, columns=there, filters=[(key, "=", row), (version_of, "=", version)])
                if len(found):
                    text, words = (found[name][0].as_py() if name in there else None for name in wanted)
                    return text or "", words or ""
        return "", ""


def explain(
    request: ExplainRequest, context: ContextReading, reading: Reading, scorer: Scorer, texts: KnowledgeTexts | None
) -> Explanation:
    """
    Args:
        reading: the one row of the request's POI.
        texts: None: knowledge is named without its texts.
    """
    table = reading.table
    causes = list(causes_of(table, scorer.bundle, texts))
    scored = scorer.score(ablated(table, causes))
    scores = scored.p_order if request.objective is Objective.ORDER else scored.p_click
    effects = scores[0] - scores[1:]
    largest = np.argsort(-np.abs(effects), kind="stable")[: request.limit or len(causes)]
    return Explanation(
        poi_id=request.poi_id,
        score=float(scores[0]),
        p_click=float(scored.p_click[0]),
        p_order=float(scored.p_order[0]),
        causes=tuple(causes[at] for at in largest),
        effects=effects[largest],
        poi_status=reading.poi_statuses[0],
        name=reading.names[0],
        category=_word(table, columns.CATEGORY),
        user_status=context.user_status,
        scene=context.scene,
        views=tuple(sorted(reading.views, key=lambda view: view.view)),
        time_us=context.time_us,
    )


def ablated(table: pa.Table, causes: Sequence[Cause]) -> pa.Table:
    """1 + n rows of one: as it is, then without each cause."""

    def column(name: str) -> pa.ChunkedArray:
        return table[name].take(pa.array([0, *(None if name in cause.columns else 0 for cause in causes)]))

    return pa.table({name: column(name) for name in table.column_names})


def causes_of(table: pa.Table, bundle: Bundle, texts: KnowledgeTexts | None) -> Iterator[Cause]:
    """All that is known of one row and that its ranker's batches hold, the scenario's id alone left out."""
    yield from _scene_values(table, bundle)
    yield from _knowledge(table, bundle, texts)
    yield from _ids_and_attributes(table, bundle)
    yield from _counts(table, bundle)
    yield from _between(table, bundle)
    yield from _recent(table, bundle)


def _scene_values(table: pa.Table, bundle: Bundle) -> Iterator[Cause]:
    reads_vectors = SCENE_SPACE in bundle.manifest.knowledge_versions
    for feature in _scene_features(bundle):
        value, row = _word(table, columns.scene(feature.name)), columns.scene_row(feature.name)
        if value is None:
            continue
        has_vector = reads_vectors and _value(table, row) not in (None, MISSING_ROW)
        state = [name for name in feature.inputs if name in scenes.STORED_INPUTS]
        yield Cause(
            kind=CauseKind.SCENE_VALUE,
            level=CauseLevel.MOMENT,
            name=feature.name,
            value=value,
            text=feature.sentence.replace("{value}", value) if has_vector else "",
            columns=(columns.scene(feature.name), row, *state),
        )


def _scene_features(bundle: Bundle) -> list[scenes.SceneFeature]:
    """Those that the ranker reads."""
    return [f for f in scenes.features_of(bundle.schema) if f.name in bundle.encoding.scene_features]


def _knowledge(table: pa.Table, bundle: Bundle, texts: KnowledgeTexts | None) -> Iterator[Cause]:
    for space in bundle.encoding.text_spaces:
        row = columns.knowledge(space, columns.ROW)
        number = _value(table, row)
        if space not in bundle.manifest.knowledge_versions or number in (None, MISSING_ROW):
            continue
        text, words = texts.of(space, number) if texts else ("", "")
        level = LEVELS[columns.SPACES[space]]
        yield Cause(kind=CauseKind.KNOWLEDGE, level=level, name=space, value=words, text=text, columns=(row,))


def _ids_and_attributes(table: pa.Table, bundle: Bundle) -> Iterator[Cause]:
    encoding = bundle.encoding
    levels = {name: CauseLevel.USER for name in encoding.user_columns} | {
        name: CauseLevel.POI for name in encoding.poi_columns
    }
    for name, level in levels.items():
        value = _word(table, name)
        if name != columns.SCENARIO_ID and value is not None:
            yield _feature(level, name, value)


def _counts(table: pa.Table, bundle: Bundle) -> Iterator[Cause]:
    views = {feature: view for view, feature in (name.split(":", 1) for name in bundle.manifest.features)}
    windows: dict[str, list[int]] = {}
    for owner, days in kept_statistics(table.column_names, columns.COUNTS):
        windows.setdefault(owner, []).append(days)
    for owner, kept in windows.items():
        names = {days: [columns.statistic(owner, count, days) for count in columns.COUNTS] for days in kept}
        every = tuple(name for of_window in names.values() for name in of_window)
        if all(_value(table, name) is None for name in every):
            continue
        said = (
            ", ".join(f"{c} {_value(table, name) or 0}" for name, c in zip(of_window, columns.COUNTS, strict=True))
            for of_window in names.values()
        )
        value = "; ".join(f"{days} days: {counts}" for days, counts in zip(names, said, strict=True))
        yield _feature(_level(columns.STATISTICS[owner]), views[every[0]], value, every)


def _level(keys: tuple[str, ...]) -> CauseLevel:
    """Whose counts those under these keys are."""
    of_user, others = columns.USER_ID in keys, len(keys) > 1
    if of_user:
        return CauseLevel.USER_AND_POI if others else CauseLevel.USER
    return CauseLevel.SCENARIO if columns.SCENARIO_ID in keys else CauseLevel.POI


def _between(table: pa.Table, bundle: Bundle) -> Iterator[Cause]:
    """How far the POI is, whether it is open, and what people of like habits say of it."""
    places = [columns.LATITUDE, columns.LONGITUDE, columns.POI_LATITUDE, columns.POI_LONGITUDE]
    degrees = [_value(table, name) for name in places]
    if None not in degrees:
        km = float(geo.distance_km(*(np.array([degree], dtype=np.float64) for degree in degrees))[0])
        yield _feature(CauseLevel.USER_AND_POI, "distance", f"{km:.2f} km", tuple(places[:2]))
    if (open_hours := _word(table, columns.OPEN_HOURS)) is not None:
        hour = hours.hour_of_week(np.array([_value(table, scenes.EVENT_TIME_US)]), bundle.encoding.timezone)
        is_open = hours.is_open([open_hours], hour)[0]
        yield _feature(CauseLevel.POI, columns.OPEN_HOURS, "open now" if is_open else "closed now")
    if columns.LIKE_MINDED in table.column_names and (score := _value(table, columns.LIKE_MINDED)) is not None:
        yield _feature(CauseLevel.USER_AND_POI, columns.LIKE_MINDED, f"{score:.3g}")


def _recent(table: pa.Table, bundle: Bundle) -> Iterator[Cause]:
    """What the user did last; the last order only where no scene value is made of it."""
    if pois := _value(table, columns.RECENT_POIS):
        more = ", ..." if len(pois) > NAMED_POIS else ""
        value = f"{len(pois)}, newest first: {', '.join(pois[:NAMED_POIS])}{more}"
        yield _feature(CauseLevel.USER, columns.RECENT_POIS, value, (columns.RECENT_POIS, columns.RECENT_TIMES))
    read = {name for feature in _scene_features(bundle) for name in feature.inputs}
    ordered = _value(table, columns.LAST_ORDER_TIME)
    if ordered is not None and columns.LAST_ORDER_TIME not in read:
        age = (_value(table, scenes.EVENT_TIME_US) - ordered) / US_PER_HOUR
        yield _feature(CauseLevel.USER, columns.LAST_ORDER_TIME, f"{age:.1f} hours ago")


def _feature(level: CauseLevel, name: str, value: str, of: tuple[str, ...] = ()) -> Cause:
    return Cause(kind=CauseKind.FEATURE, level=level, name=name, value=value, columns=of or (name,))


def _value(table: pa.Table, name: str) -> Any:
    return table[name][0].as_py()


def _word(table: pa.Table, name: str) -> str | None:
    value = _value(table, name)
    return None if value is None else str(value)
