"""DuckDB as the offline store uses it: how much of the machine it may take, what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig, _read_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage


class DuckConfig(DuckDBOfflineStoreConfig):
    """
    Args:
        memory_limit: of one query, in DuckDB's words (`4GB`); beyond it DuckDB spills to disk. None: its default.
        threads: of one query; None: all cores.
    """

    memory_limit: str | None = None
    threads: int | None = None


class LazyJob(RetrievalJob):
    """A query that runs when its result is asked for, and keeps nothing."""

    @property
    def full_feature_names(self) -> bool:
        return False

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return None

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Feast persists what has metadata: point-in-time joins, which say how."""
        raise NotImplementedError("only a point-in-time join can be persisted; write the result of to_arrow() yourself")

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


def configure(db: duckdb.DuckDBPyConnection, config: DuckConfig) -> None:
    db.execute("SET TimeZone = 'UTC'")
    if config.memory_limit is not None:
        db.execute("SET memory_limit = ?", [config.memory_limit])
    if config.threads is not None:
        db.execute("SET threads = ?", [config.threads])


def relation_of(source: Any, repo_path: str) -> str | pa.Table:
    """The path of Parquet files, which DuckDB reads itself, or a table where Feast has to read the source."""
    path = getattr(source, "path", None) or ""  # Spark's sources may have none
    if not path.endswith(".parquet") or "://" in path:
        return _read_data_source(source, repo_path).to_pyarrow()
    return path if Path(path).is_absolute() else str(Path(repo_path) / path)
