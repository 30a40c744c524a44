"""Where the views' rows come from: one Parquet file a table in the active workspace."""

from feast import FileSource

from feature_repo import columns
from feature_repo.datasets.schema import DataError, Schema
from feature_repo.workspace import ENVIRONMENT_VARIABLE, active

WORKSPACE = active()


def active_schema() -> Schema:
    """The schema of the active workspace's dataset. Raises DataError where there is none yet."""
    if not WORKSPACE.schema.exists():
        raise DataError(
            f"{WORKSPACE.root} holds no source tables: run `scenerank data city` first, or point "
            f"{ENVIRONMENT_VARIABLE} at a workspace that has them"
        )
    return Schema.load(WORKSPACE.schema)


SCHEMA = active_schema()


def table(name: str) -> FileSource:
    """The source of one table that datasets or aggregates wrote."""
    return _parquet(name, str(WORKSPACE.source(name)))


def knowledge(space: str) -> FileSource:
    """The source of one knowledge space that the language model wrote."""
    return _parquet(space, str(WORKSPACE.knowledge / f"{space}.parquet"))


def knowledge_beside(view: str) -> FileSource:
    """The source of one version that stands beside the one in use."""
    return _parquet(view, str(WORKSPACE.beside / f"{view}.parquet"))


def _parquet(name: str, path: str) -> FileSource:
    return FileSource(
        name=name,
        path=path,
        timestamp_field=columns.EVENT_TIMESTAMP,
        created_timestamp_column=columns.CREATED_TIMESTAMP,
    )
