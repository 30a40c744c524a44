"""An offline store whose point-in-time join is one ASOF merge per view, instead of every row with all of its history.

Same results as Feast's own DuckDB store, which it extends, and the rows come back in the order of the entity rows:

    of each view the newest row with the same keys and a time at or before the entity row's, null if older than its TTL

What `materialize` asks for, the newest row of every entity, is found by times alone and then streamed.

With `filter_by_created_timestamp` (what was known at T?) a value counts from the later of its event and creation time,
and a value that arrives after a newer one is never the newest: such superseded values are dropped before the merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, _write_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.stores.duck import DuckConfig, LazyJob, relation_of
from feature_repo.stores.latest import LatestJob
from feature_repo.stores.merge import Lookup, join
from feature_repo.stores.packed import micros_of


class AsofOfflineStoreConfig(DuckConfig):
    """
    Args:
        part_rows: rows of a view that are joined at a time, about; more are divided by a hash of their keys.
    """

    type: str = "feature_repo.stores.asof.AsofOfflineStore"
    part_rows: int = 20_000_000

    def joined(
        self, spine: pa.Table, moments_us: np.ndarray, lookups: Sequence[Lookup]
    ) -> Iterator[dict[str, pa.ChunkedArray]]:
        """The values of every view, in order, for every row of the spine: here, one view after the other."""
        return (join(spine, moments_us, lookup, self.part_rows) for lookup in lookups)


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
        """Raises ValueError for an `entity_df` that is a query (this store joins data frames), that lacks a join key,
        or that has a column by the name of a feature that is asked for."""
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError("the ASOF store joins data frames; run the query first and pass its result as entity_df")
        time = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        lookups = [
            _lookup(view, feature_refs, full_feature_names, filter_by_created_timestamp, str(config.repo_path))
            for view in feature_views
        ]
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        _check_keys(entity_df, lookups)
        for lookup in lookups:
            _check_names(entity_df, lookup.name, lookup.features)
        for view in on_demand:
            _check_names(entity_df, view.name, _asked(view.projection, feature_refs, full_feature_names))
        return AsofRetrievalJob(
            entity_df=entity_df,
            time=time,
            lookups=lookups,
            on_demand=on_demand,
            full_names=full_feature_names,
            config=config.offline_store,
            references=feature_refs,
            repo_path=str(config.repo_path),
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
        """Of each entity the row with the newest event time in the range, then the newest creation time, then the last
        one of the source. Rows without a key belong to no entity."""
        return LatestJob(
            relation=relation_of(data_source, str(config.repo_path)),
            keys=join_key_columns,
            features=feature_name_columns,
            time=timestamp_field,
            created=created_timestamp_column,
            between=(start_date, end_date),
            config=config.offline_store,
        )


def _lookup(view: FeatureView, references: list[str], full_names: bool, known_only: bool, repo_path: str) -> Lookup:
    source: Any = view.batch_source
    projection: Any = view.projection
    column_of = {new: old for old, new in source.field_mapping.items()}
    called = projection.join_key_map or {}  # a key that it leaves out has its own name in the entity rows too
    joined = {entity.name: called.get(entity.name, entity.name) for entity in view.entity_columns}
    return Lookup(
        name=view.name,
        relation=relation_of(source, repo_path),
        keys={column_of.get(key, key): entity for key, entity in joined.items()},
        features={
            answer: column_of.get(name, name) for answer, name in _asked(projection, references, full_names).items()
        },
        time=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl=view.ttl or None,
        known_only=known_only and bool(source.created_timestamp_column),
    )


def _asked(projection: Any, references: list[str], full_names: bool) -> dict[str, str]:
    """What a view is asked for: the column of the answer -> the feature."""
    parts = (reference.split(":", 1) for reference in references)
    wanted = [name for view, name in parts if view == projection.name_to_use()]
    prefix = f"{projection.name_alias or projection.name}__" if full_names else ""
    return {f"{prefix}{name}": name for name in wanted}


def _check_keys(entity_df: pd.DataFrame, lookups: Sequence[Lookup]) -> None:
    for lookup in lookups:
        absent = sorted(set(lookup.keys.values()) - set(entity_df.columns))
        if absent:
            raise ValueError(
                f"view {lookup.name!r} is joined by {absent}, which the entity rows have not got: add the columns; "
                f"they have {', '.join(map(str, entity_df.columns))}"
            )


def _check_names(entity_df: pd.DataFrame, view: str, answers: Iterable[str]) -> None:
    taken = sorted(set(answers) & set(entity_df.columns))
    if taken:
        raise ValueError(
            f"columns {taken} of the entity rows have the names of features of view {view!r} that are asked for: drop "
            "or rename the columns, or ask with full_feature_names=True"
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
        repo_path: str,
    ) -> None:
        super().__init__()
        self._entity_df = entity_df
        self._time = time
        self._lookups = lookups
        self._on_demand = on_demand
        self._full_names = full_names
        self._config = config
        self._repo_path = repo_path
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

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Feast's `create_saved_dataset`: written as Feast's DuckDB store does, with the values of on-demand views."""
        answer = ibis.memtable(self.to_arrow(timeout=timeout))
        _write_data_source(answer, storage.to_data_source(), self._repo_path, "overwrite", allow_overwrite)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        moments = _utc(self._entity_df[self._time])
        answer = pa.Table.from_pandas(self._entity_df.assign(**{self._time: moments}), preserve_index=False)
        for values in self._config.joined(answer, micros_of(answer[self._time]), self._lookups):
            for name, column in values.items():
                answer = answer.append_column(name, column)
        return answer


def _utc(times: pd.Series[Any]) -> pd.Series[Any]:
    """Of any zones, also of several; times without one are UTC, as everywhere in Feast."""
    return pd.to_datetime(times, utc=True).astype("datetime64[us, UTC]")
