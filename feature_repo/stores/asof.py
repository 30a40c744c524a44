"""An offline store whose point-in-time join is one ASOF merge per view, instead of every row with all of its history.

Same results as Feast's own DuckDB store, which it extends, and the rows come back in the order of the entity rows:

    spine ASOF LEFT JOIN view ON keys AND spine.time >= view.time        then: older than its TTL -> null

What `materialize` asks for, the newest row of every entity, is found by times alone and then streamed.

With `filter_by_created_timestamp` (what was known at T?) a value counts from the later of its event and creation time,
and a value that arrives after a newer one is never the newest: such superseded values are dropped before the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig

from feature_repo.stores.duck import DuckConfig, LazyJob, configure, quoted, relation_of, text
from feature_repo.stores.latest import LatestJob

ROW = "__row"  # position of an entity row, so that every answer is in the order of the question


class AsofOfflineStoreConfig(DuckConfig):
    """How much of the machine a join may take."""

    type: str = "feature_repo.stores.asof.AsofOfflineStore"


class AsofOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with another point-in-time join."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Raises ValueError for an `entity_df` that is a query: this store joins data frames."""
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError("the ASOF store joins data frames; run the query first and pass its result as entity_df")
        time = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        lookups = [
            _lookup(view, feature_refs, full_feature_names, filter_by_created_timestamp, str(config.repo_path))
            for view in feature_views
        ]
        return AsofRetrievalJob(
            entity_df=entity_df,
            time=time,
            lookups=lookups,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_names=full_feature_names,
            config=config.offline_store,
            references=feature_refs,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Of each entity the row with the newest event time in the range, then the newest creation time. Rows without
        a key belong to no entity."""
        return LatestJob(
            relation=relation_of(data_source, str(config.repo_path)),
            keys=join_key_columns,
            features=feature_name_columns,
            time=timestamp_field,
            created=created_timestamp_column,
            between=(start_date, end_date),
            config=config.offline_store,
        )


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What one view contributes to a join.

    Attributes:
        relation: what DuckDB reads (a path in `read_parquet`) or an Arrow table.
        keys: column of the view -> column of the entity rows.
        features: name in the answer -> column of the source.
        created: only where creation time limits what may be seen, or settles ties.
    """

    name: str
    relation: str | pa.Table
    keys: dict[str, str]
    features: dict[str, str]
    time: str
    created: str | None
    ttl: timedelta | None
    known_only: bool


def _lookup(view: FeatureView, references: list[str], full_names: bool, known_only: bool, repo_path: str) -> Lookup:
    source: Any = view.batch_source
    projection: Any = view.projection
    wanted = [r.split(":", 1)[1] for r in references if r.split(":", 1)[0] == projection.name_to_use()]
    prefix = f"{projection.name_alias or view.name}__" if full_names else ""
    column_of = {new: old for old, new in source.field_mapping.items()}
    joined = projection.join_key_map or {entity.name: entity.name for entity in view.entity_columns}
    return Lookup(
        name=view.name,
        relation=relation_of(source, repo_path),
        keys={column_of.get(key, key): entity for key, entity in joined.items()},
        features={f"{prefix}{name}": column_of.get(name, name) for name in wanted},
        time=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl=view.ttl or None,
        known_only=known_only and bool(source.created_timestamp_column),
    )


class AsofRetrievalJob(LazyJob):
    """A point-in-time join."""

    def __init__(
        self,
        *,
        entity_df: pd.DataFrame,
        time: str,
        lookups: list[Lookup],
        on_demand: list[OnDemandFeatureView],
        full_names: bool,
        config: AsofOfflineStoreConfig,
        references: list[str],
    ) -> None:
        super().__init__()
        self._entity_df = entity_df
        self._time = time
        self._lookups = lookups
        self._on_demand = on_demand
        self._full_names = full_names
        self._config = config
        self._metadata = RetrievalMetadata(
            features=references,
            keys=[name for name in entity_df.columns if name != time],
            min_event_timestamp=_utc(entity_df[time]).min(),
            max_event_timestamp=_utc(entity_df[time]).max(),
        )

    @property
    def full_feature_names(self) -> bool:
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        entities = self._entity_df.assign(**{self._time: _utc(self._entity_df[self._time])})
        answer = pa.Table.from_pandas(entities, preserve_index=False)
        spine = answer.select(sorted({self._time, *(k for lookup in self._lookups for k in lookup.keys.values())}))
        spine = spine.append_column(ROW, pa.array(range(len(spine)), pa.int64()))
        with duckdb.connect() as db:
            configure(db, self._config)
            db.register("spine", spine)
            for lookup in self._lookups:
                for name, column in _join(db, lookup, self._time).items():
                    answer = answer.append_column(name, column)
        return answer


def _join(db: duckdb.DuckDBPyConnection, lookup: Lookup, time: str) -> dict[str, pa.ChunkedArray]:
    """The values of one view for every spine row, in the spine's order."""
    if isinstance(lookup.relation, pa.Table):
        db.register("source", lookup.relation)
        source = "source"
    else:
        source = f"read_parquet({text(lookup.relation)})"
    keys = [f"v.{quoted(key)} = s.{quoted(entity)}" for key, entity in lookup.keys.items()]
    alive = "TRUE"
    if lookup.ttl is not None:
        alive = f"v.__time + {_interval(lookup.ttl)} >= s.{quoted(time)}"
    values = [
        f"CASE WHEN {alive} THEN v.{quoted(column)} END AS {quoted(name)}" for name, column in lookup.features.items()
    ]
    query = f"""
        SELECT {", ".join(values)} FROM spine s
        ASOF LEFT JOIN ({_versions(db, lookup, source, time)}) v
          ON {" AND ".join([*keys, f"s.{quoted(time)} >= v.__known"])}
        ORDER BY s.{ROW}"""
    table = db.execute(query).to_arrow_table()
    return {name: table[name] for name in lookup.features}


def _versions(db: duckdb.DuckDBPyConnection, lookup: Lookup, source: str, time: str) -> str:
    """A query for one row a (keys, moment from which it is the newest): `__known`, its event time `__time`, values."""
    keys = [quoted(key) for key in lookup.keys]
    columns = ", ".join([*keys, *(quoted(c) for c in dict.fromkeys(lookup.features.values()) if c not in lookup.keys)])
    event = f"{quoted(lookup.time)}::TIMESTAMPTZ"
    created = f"{quoted(lookup.created)}::TIMESTAMPTZ" if lookup.created else event
    rows = f"SELECT {columns}, {event} AS __time, {created} AS __created FROM {source} WHERE {_reach(lookup, time)}"
    partition = f"PARTITION BY {', '.join(keys)}" if keys else ""
    late = lookup.known_only and _any(db, f"SELECT 1 FROM {source} WHERE {created} > {event}")
    if not late:
        # Nothing was known late, so the event time decides alone; ties go to the row that was created last.
        newest = f"row_number() OVER ({partition} {',' if keys else 'PARTITION BY'} __time ORDER BY __created DESC)"
        return f"SELECT *, __time AS __known FROM ({rows}) QUALIFY {newest} = 1"
    so_far = f"{partition} ORDER BY greatest(__time, __created), __time, __created"
    at_moment = f"{partition} {',' if keys else 'PARTITION BY'} __known ORDER BY __time DESC, __created DESC"
    order = "struct_pack(t := __time, c := __created)"
    return f"""
        SELECT * FROM (
            SELECT *, greatest(__time, __created) AS __known,
                   max({order}) OVER ({so_far} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS __newest
            FROM ({rows}))
        WHERE {order} = __newest
        QUALIFY row_number() OVER ({at_moment}) = 1"""


def _reach(lookup: Lookup, time: str) -> str:
    """Which source rows any spine row can see at all."""
    event = f"{quoted(lookup.time)}::TIMESTAMPTZ"
    reach = f"{event} <= (SELECT max({quoted(time)}) FROM spine)"
    if lookup.ttl is not None:
        reach += f" AND {event} + {_interval(lookup.ttl)} >= (SELECT min({quoted(time)}) FROM spine)"
    return reach


def _any(db: duckdb.DuckDBPyConnection, query: str) -> bool:
    return db.execute(f"{query} LIMIT 1").fetchone() is not None


def _utc(times: pd.Series[Any]) -> pd.Series[Any]:
    """Times without a zone are UTC, as everywhere in Feast."""
    stamps = pd.to_datetime(times)
    stamps = stamps.dt.tz_localize("UTC") if stamps.dt.tz is None else stamps.dt.tz_convert("UTC")
    return stamps.astype("datetime64[us, UTC]")


def _interval(span: timedelta) -> str:
    return f"to_microseconds({span // timedelta(microseconds=1)})"
