"""Training sets: a FeatureService pulled for a spine of impressions, each row as of its own moment.

    spine (impressions of a time range)
      -> keys that statistics are kept under: kinds of the POI, part of the day
      -> Feast's point-in-time join: values with event and creation time at or before the impression
      -> rows of the scene values' vectors that were available at or before the impression
      -> Parquet parts, in the order of the spine, one a slice of it

A pull is exact or it fails: every spine row comes back once. An interrupted backfill goes on with the first part that
is not there yet. Several parts are joined at once, for each join reads and sorts all versions that its rows can see.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import BORDERS, TIME, Schema
from feature_repo.files import locked, state_of
from feature_repo.scenes import EVENT_TIME_US, daypart_keys, features_of
from feature_repo.store import view_of
from feature_repo.workspace import Workspace
from trainers.knowledge import SCENE_SPACE, VectorMatrix, load_matrix, served_from
from trainers.spine import read_entities
from trainers.views_state import views_state

PART_ROWS = 50_000  # of one file
JOINED_PARTS = 4  # at once; more save little and take more memory


class TrainingSetError(ValueError):
    """A training set cannot be pulled or used; the message says which, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """What to pull: a service of the registry, for the impressions of [start, end), optionally of one scenario.

    Args:
        entities: a table of rows to pull instead of the log's impressions (`spine`).
    """

    service: str
    start: datetime
    end: datetime
    scenario: str | None = None
    entities: Path | None = None

    def name(self) -> str:
        """A folder name that differs where the pull differs."""
        of = "" if self.entities is None else f" {self.entities.resolve()}"
        text = f"{self.start.isoformat()} {self.end.isoformat()} {self.scenario}{of}"
        return f"{self.service}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def backfill(
    workspace: Workspace,
    store: Any,
    pull: Pull,
    progress: Callable[[int, int], None] = lambda done, total: None,
    part_rows: int = PART_ROWS,
) -> Path:
    """Pull to `<workspace>/training/<pull>/part-*.parquet` and return the folder; complete parts are not pulled again.

    Args:
        store: the workspace's `feast.FeatureStore`.
        progress: called with rows done and rows in all.
    Raises:
        TrainingSetError: no impressions in the range, an unknown service or scenario, or a join that lost rows.
        ValueError: another process is at work on the same pull.
    """
    spine = impressions(workspace, pull)
    folder = workspace.training / pull.name()
    state = {"rows": len(spine), "part_rows": part_rows, **_sources_state(workspace, store, pull)}
    busy = f"another backfill is at work in {folder}: wait for it, or stop it; what it pulled is kept"
    with locked(folder / ".lock", shared=False, busy=busy):
        _restart_if_stale(folder, state)
        done = 0
        for start in range(0, len(spine), part_rows * JOINED_PARTS):
            some = spine.slice(start, part_rows * JOINED_PARTS)
            parts = {
                folder / f"part-{(start + at) // part_rows:05d}.parquet": some.slice(at, part_rows)
                for at in range(0, len(some), part_rows)
            }
            for rows in _pulled(parts, lambda missing: join(workspace, store, pull.service, missing)):
                progress(done := done + rows, len(spine))
    return folder


def _pulled(parts: Mapping[Path, pa.Table], joined: Callable[[pa.Table], pa.Table]) -> Iterator[int]:
    """Have some parts on disk, each whole or not at all, those that are missing from one join. Yields their rows."""
    missing = {path: rows for path, rows in parts.items() if not path.exists()}
    values, used = joined(pa.concat_tables(missing.values())) if missing else None, 0
    for path, rows in parts.items():
        if path in missing and values is not None:
            staging = path.with_suffix(".partial")
            pq.write_table(values.slice(used, len(rows)), staging, compression="zstd")
            os.replace(staging, path)
            used += len(rows)
        yield len(rows)


def read(folder: Path, start: datetime, end: datetime) -> pa.Table:
    """The rows of a training set with event time in [start, end), in the order of the spine."""
    when = pds.field(columns.EVENT_TIMESTAMP)
    inside = (when >= pa.scalar(start, TIME)) & (when < pa.scalar(end, TIME))
    return pds.dataset(sorted(folder.glob("part-*.parquet"))).to_table(filter=inside).combine_chunks()


def read_part(workspace: Workspace, folder: Path, part: str) -> pa.Table:
    """The rows of train, valid or test of a training set, in the order of the spine.

    In a log with a table `borders` each row is in the part that its user's own borders say.
    """
    split = Schema.load(workspace.schema).split
    if split.by_user:
        table = read(folder, split.train, split.end)
        return table.filter(pc.equal(part_of_rows(table, pq.read_table(workspace.source(BORDERS))), part))
    start, end = split.bounds(part)
    assert start is not None, "a training set has no history"
    return read(folder, start, end)


def part_of_rows(table: pa.Table, borders: pa.Table) -> pa.Array:
    """Which part each row is in by the borders of its user, strings (n,)."""
    at = pc.index_in(table[columns.USER_ID].combine_chunks(), value_set=borders[columns.USER_ID].combine_chunks())
    time = table[columns.EVENT_TIMESTAMP].combine_chunks().cast(TIME)
    valid, test = (pc.greater_equal(time, borders[name].combine_chunks().take(at)) for name in ("valid", "test"))
    return pc.if_else(test, "test", pc.if_else(valid, "valid", "train"))


def narrow(table: pa.Table, features: Sequence[str]) -> pa.Table:
    """The columns that a service holds, of a pull of a service that holds more.

    Args:
        features: `view:feature` of the narrower service; the impression's own columns stay.
    Raises:
        TrainingSetError: the pull lacks one of them.
    """
    wanted = {reference.split(":", 1)[1] for reference in features}
    if missing := sorted(wanted - set(table.column_names)):
        raise TrainingSetError(f"the training set lacks {missing}: pull a service that holds them")
    reads_knowledge = any(columns.knowledge(space, columns.ROW) in wanted for space in columns.KNOWLEDGE)
    wanted |= {f"{name}_row" for name in wanted if name.startswith("scene_") and reads_knowledge}
    pulled = table.column_names[table.column_names.index(columns.DAYPART_KEY) + 1 :]
    return table.drop_columns([name for name in pulled if name not in wanted])


def impressions(workspace: Workspace, pull: Pull) -> pa.Table:
    """The spine of a pull, in the order of its row ids. Raises TrainingSetError where it is empty."""
    when = pc.field(columns.EVENT_TIMESTAMP)
    wanted = (when >= pa.scalar(pull.start, TIME)) & (when < pa.scalar(pull.end, TIME))
    if pull.scenario is not None:
        wanted &= pc.field(columns.SCENARIO_ID) == pull.scenario
    if pull.entities is None:
        spine = pq.read_table(workspace.source("impressions"), filters=wanted).sort_by(columns.ROW_ID)
    else:
        spine = read_entities(pull.entities, Schema.load(workspace.schema)).filter(wanted)
    if not len(spine):
        of = f" of scenario {pull.scenario!r}" if pull.scenario else ""
        raise TrainingSetError(
            f"no impressions{of} from {pull.start} to {pull.end} in {pull.entities or workspace.sources}"
        )
    return spine


def join(
    workspace: Workspace, store: Any, service: str, spine: pa.Table, versions: Mapping[str, str] | None = None
) -> pa.Table:
    """The point-in-time values of one slice of the spine, in its order, with the spine's own columns beside them.

    Args:
        versions: of knowledge, by space; of spaces that are not named, and by default, those in use.
    """
    schema = Schema.load(workspace.schema)
    asked = with_keys(spine, workspace, schema)
    pulled = store.get_historical_features(
        entity_df=asked.drop_columns(_outcomes(asked)).to_pandas(),
        features=_features(store, service, versions or {}),
        filter_by_created_timestamp=True,
    ).to_arrow()
    if len(pulled) != len(spine) or pc.count_distinct(pulled[columns.ROW_ID]).as_py() != len(spine):
        raise TrainingSetError(
            f"the join of {service} returned {len(pulled)} rows for {len(spine)} impressions; "
            "the offline store loses or doubles rows; use that of the project's profiles (feature_repo/stores/asof.py)"
        )
    ordered = pulled.take(pc.index_in(spine[columns.ROW_ID], value_set=pulled[columns.ROW_ID].combine_chunks()))
    values = ordered.drop_columns([name for name in ordered.column_names if name in asked.column_names])
    table = asked
    types = _declared(store, service)
    for name in values.column_names:
        table = table.append_column(name, values[name].cast(types[name]))
    return with_scene_rows(table, schema, _scene_matrix(workspace, table, (versions or {}).get(SCENE_SPACE)))


def with_keys(spine: pa.Table, workspace: Workspace, schema: Schema) -> pa.Table:
    """The spine with its moment as a number and the keys that statistics are kept under."""
    pois = pq.read_table(workspace.source("pois"), columns=[columns.POI_ID, columns.CATEGORY, columns.SPECIALTY])
    at = pc.index_in(spine[columns.POI_ID], value_set=pois[columns.POI_ID].combine_chunks())
    times = spine[columns.EVENT_TIMESTAMP].cast(TIME).cast(pa.int64())
    return (
        spine.append_column(EVENT_TIME_US, times)
        .append_column(columns.CATEGORY_KEY, pois[columns.CATEGORY].take(at))
        .append_column(columns.SPECIALTY_KEY, pois[columns.SPECIALTY].take(at))
        .append_column(columns.DAYPART_KEY, pa.array(daypart_keys(times.to_numpy(), schema.timezone), pa.string()))
    )


def with_scene_rows(table: pa.Table, schema: Schema, matrix: VectorMatrix | None) -> pa.Table:
    """Append `scene_<feature>_row` for every scene column: the row of the value's vector as of the impression."""
    if matrix is None:
        return table
    times = table[EVENT_TIME_US].to_numpy()
    for feature in features_of(schema):
        values = table[columns.scene(feature.name)].cast(pa.string())
        keys = pc.binary_join_element_wise(feature.name, values, "=")
        table = table.append_column(columns.scene_row(feature.name), pa.array(matrix.rows_at(keys, times), pa.int64()))
    return table


def _features(store: Any, service: str, versions: Mapping[str, str]) -> Any:
    """What to ask of Feast: a service, its views of knowledge replaced by those of other versions."""
    registered = store.get_feature_service(service)
    views = {space: view_of(store, space, version) for space, version in versions.items()}
    if all(space == view for space, view in views.items()):
        return registered
    projections = registered.feature_view_projections
    return [f"{views.get(p.name, p.name)}:{feature.name}" for p in projections for feature in p.features]


def _declared(store: Any, service: str) -> dict[str, pa.DataType]:
    """The type of each feature of a service. Stores keep values, not types: a column that says nothing in a whole slice
    has none, Spark has counts that may be absent as floating point."""
    from feast.type_map import feast_value_type_to_pa

    projections = store.get_feature_service(service).feature_view_projections
    return {f.name: feast_value_type_to_pa(f.dtype.to_value_type()) for p in projections for f in p.features}


def _scene_matrix(workspace: Workspace, table: pa.Table, version: str | None) -> VectorMatrix | None:
    """The scene vectors, where the service has both scenes and knowledge."""
    if not any(columns.knowledge(space, columns.ROW) in table.column_names for space in columns.KNOWLEDGE):
        return None
    beside = served_from(workspace, SCENE_SPACE, version)
    return load_matrix(beside if beside.is_file() else served_from(workspace, SCENE_SPACE))


def _outcomes(spine: pa.Table) -> list[str]:
    """Columns that the join has no business with: labels, and what happened at or after the impression."""
    after = (*columns.LABELS, columns.OUTCOME_TIMESTAMP, columns.POSITION, columns.PROPENSITY)
    return [name for name in after if name in spine.column_names]


def _sources_state(workspace: Workspace, store: Any, pull: Pull) -> dict[str, Any]:
    """All that the values of a pull follow from: the workspace's files and the pull's own by size and time of change,
    what is registered of the service's views, and which offline store joins them."""
    files = [*workspace.sources.glob("*.parquet"), *workspace.knowledge.glob("*.parquet"), workspace.schema]
    state: dict[str, Any] = {**state_of(files), "offline store": store.config.offline_store.type}
    if pull.entities is not None:  # wherever it lies, it may be called as one of those
        (state["the pull's own entities"],) = state_of([pull.entities]).values()
    return state | {"views": views_state(store, pull.service)}


def _restart_if_stale(folder: Path, state: dict[str, Any]) -> None:
    """Drop parts that were pulled from other sources than today's, and note what the next ones are pulled from."""
    note = folder / "state.json"
    text = json.dumps(state, sort_keys=True)
    if note.exists() and note.read_text() == text:
        return
    for path in folder.glob("part-*"):
        path.unlink()
    note.write_text(text)
