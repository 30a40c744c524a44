"""Where the views' rows come from: one Parquet file a table in the active workspace, as Feast or as Spark reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import yaml
from feast import FileSource

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import active

if TYPE_CHECKING:
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

ParquetSource: TypeAlias = "FileSource | SparkSource"
WORKSPACE = active()


def active_schema() -> Schema:
    """The schema of the active workspace's dataset. Raises DataError where there is none yet."""
    return Schema.load(WORKSPACE.schema)


def _on_spark() -> bool:
    """Whether the profile that was applied to the workspace joins on Spark, which reads sources of its own class."""
    if not WORKSPACE.feature_store_yaml.exists():
        return False
    return bool(yaml.safe_load(WORKSPACE.feature_store_yaml.read_text())["offline_store"]["type"] == "spark")


SCHEMA = active_schema()
ON_SPARK = _on_spark()


def table(name: str) -> ParquetSource:
    """The source of one table that datasets or aggregates wrote."""
    return _parquet(name, str(WORKSPACE.source(name)))


def knowledge(space: str) -> ParquetSource:
    """The source of one knowledge space that the language model wrote."""
    return _parquet(space, str(WORKSPACE.knowledge / f"{space}.parquet"))


def knowledge_beside(view: str) -> ParquetSource:
    """The source of one version that stands beside the one in use."""
    return _parquet(view, str(WORKSPACE.beside / f"{view}.parquet"))


def _parquet(name: str, path: str) -> ParquetSource:
    time, created = columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP
    if not ON_SPARK:
        return FileSource(name=name, path=path, timestamp_field=time, created_timestamp_column=created)
    # Feast imports pyspark with this class: only where it is asked for.
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    return SparkSource(
        name=f"{name}_on_spark",  # a registry that holds a source of one class cannot take another under its name
        path=path,
        file_format="parquet",
        timestamp_field=time,
        created_timestamp_column=created,
    )
