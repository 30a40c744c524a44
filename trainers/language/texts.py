"""Which texts a language model has to read: one table a vector space, collected from the source tables.

A text table has the columns key (user_id, poi_id, scenario_id or scene_value), `text`, `event_timestamp` and
`created_timestamp`. Static texts are available from their entity's first appearance, the text of a scene value from
the first impression whose scene has it, or the first request for it, as nothing in either is learned from a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns, scenes
from feature_repo.aggregates import USER_STATE
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace
from trainers import wanted

CHUNK_ROWS = 65_536

# The vector spaces whose texts stand in a source table as they are.
STATIC = {"poi_text": "pois", "user_text": "users", "scenario_text": "scenarios"}
SCENES = "scene_text"


class TextError(ValueError):
    """Texts cannot be collected. The message names the table and the remedy."""


def collect(workspace: Workspace, space: str) -> pa.Table:
    """The texts of one vector space, oldest first. Raises TextError if a table they come from is absent."""
    if space == SCENES:
        return scene_texts(workspace)
    if space not in STATIC:
        raise TextError(f"no texts are known for vector space {space!r}; there are {[*STATIC, SCENES]}")
    key = columns.KNOWLEDGE[space]
    path = _existing(workspace, STATIC[space])
    names = [key, columns.TEXT, columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP]
    return pq.read_table(path, columns=names).sort_by([(columns.CREATED_TIMESTAMP, "ascending"), (key, "ascending")])


def scene_texts(workspace: Workspace) -> pa.Table:
    """Every scene value that occurs in the impressions, may occur as the last clicked category or specialty, or was
    asked for (`trainers.wanted`)."""
    schema = Schema.load(workspace.schema)
    first: dict[tuple[str, str], datetime] = {}
    for chunk in moments(workspace, schema):
        _add_first(first, _values(chunk, schema))
    for feature, column in ((f, c) for f in scenes.features_of(schema) for c in _poi_columns(f)):
        pois = pq.read_table(_existing(workspace, "pois"), columns=[column, columns.CREATED_TIMESTAMP])
        _add_first(first, ((feature.name, pois[column], pois[columns.CREATED_TIMESTAMP]),))
    sentences = {f.name: f.sentence for f in scenes.features_of(schema)}
    asked = ((*columns.feature_and_value(key), time) for key, time in wanted.read(workspace, SCENES).items())
    for name, value, time in asked:
        if name in sentences:
            _add_first(first, ((name, pa.array([value]), pa.array([time], TIME)),))
    found = sorted((time, name, value) for (name, value), time in first.items())
    keys = [columns.scene_value(name, value) for _, name, value in found]
    texts = [sentences[name].replace("{value}", value) for _, name, value in found]
    times = pa.array([time for time, _, _ in found], TIME)
    return pa.table(
        {
            columns.SCENE_VALUE: pa.array(keys, pa.string()),
            columns.TEXT: pa.array(texts, pa.string()),
            columns.EVENT_TIMESTAMP: times,
            columns.CREATED_TIMESTAMP: times,
        }
    )


FeatureValues = tuple[str, pa.ChunkedArray | pa.Array, pa.ChunkedArray | pa.Array]  # feature, values, times


def scene_values(chunk: pa.Table, schema: Schema) -> dict[str, list[str | None]]:
    """What the moments of some impressions are in words: n values, or None, of each scene feature."""
    inputs = {name: chunk[name].to_pylist() for name in chunk.column_names if name != columns.EVENT_TIMESTAMP}
    evaluated = scenes.evaluate(inputs, schema)
    return {feature.name: evaluated[columns.scene(feature.name)] for feature in scenes.features_of(schema)}


def _values(chunk: pa.Table, schema: Schema) -> Iterator[FeatureValues]:
    for name, values in scene_values(chunk, schema).items():
        yield name, pa.array(values, pa.string()), chunk[columns.EVENT_TIMESTAMP]


def _add_first(first: dict[tuple[str, str], datetime], found: Iterable[FeatureValues]) -> None:
    """Keep the earliest time of every (feature, value)."""
    for feature, values, times in found:
        earliest = pa.table({"value": values, "time": times}).group_by("value").aggregate([("time", "min")])
        for value, time in zip(earliest["value"].to_pylist(), earliest["time_min"].to_pylist(), strict=True):
            if value:
                first[feature, value] = min(time, first.get((feature, value), time))


def _poi_columns(feature: scenes.SceneFeature) -> tuple[str, ...]:
    """The column of POIs that lists all values of a feature of the last clicked POI."""
    listed = {(columns.LAST_CATEGORY,): columns.CATEGORY, (columns.LAST_SPECIALTY,): columns.SPECIALTY}
    return (listed[feature.inputs],) if feature.inputs in listed else ()


def moments(workspace: Workspace, schema: Schema, clicked_before: datetime | None = None) -> Iterator[pa.Table]:
    """The moments of impressions with the user's state as of each, a chunk at a time: what scene features read.

    State of exactly the impression's time counts: it is already stamped after the click that caused it.

    Args:
        clicked_before: None for the distinct moments of all impressions; else one row, with its keys, for each
            impression whose click was known before this time.
    """
    state = (columns.LAST_CATEGORY, columns.LAST_SPECIALTY, columns.LAST_ORDER_TIME)
    keys = (columns.ROW_ID, columns.REQUEST_ID, columns.USER_ID, columns.POI_ID, columns.ORDER)
    wanted = [f"i.{name}" for name in (columns.EVENT_TIMESTAMP, *(keys if clicked_before else ()))]
    wanted += [f"epoch_us(i.{columns.EVENT_TIMESTAMP}) AS {scenes.EVENT_TIME_US}", *(f"s.{name}" for name in state)]
    wanted += [f'i."{f.name}"' for f in schema.request_fields]
    clicked = (
        f"i.{columns.CLICK} = 1 AND greatest(i.{columns.EVENT_TIMESTAMP}, i.{columns.OUTCOME_TIMESTAMP}) < $before"
    )
    query = f"""
        SELECT DISTINCT {", ".join(wanted)}
        FROM read_parquet($impressions) i ASOF LEFT JOIN read_parquet($state) s
          ON i.{columns.USER_ID} = s.{columns.USER_ID} AND i.{columns.EVENT_TIMESTAMP} >= s.{columns.EVENT_TIMESTAMP}
        {f"WHERE {clicked} ORDER BY i.{columns.ROW_ID}" if clicked_before else ""}
    """
    files = {"impressions": str(_existing(workspace, "impressions")), "state": str(_existing(workspace, USER_STATE))}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET asof_loop_join_threshold = 0")  # DuckDB's other plan is quadratic on small probe sides
        arguments = files | ({"before": clicked_before} if clicked_before else {})
        for batch in connection.execute(query, arguments).to_arrow_reader(CHUNK_ROWS):
            yield pa.Table.from_batches([batch])


def _existing(workspace: Workspace, table: str) -> str:
    path = workspace.source(table)
    if not path.is_file():
        raise TextError(f"{path} is missing; build the source tables of this workspace first")
    return str(path)
