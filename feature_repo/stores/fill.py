"""The batch engine that fills packed online stores: Arrow batches in, records out, never the whole view in memory.

    batch_engine:
      type: feature_repo.stores.fill.PackedEngine

`feast materialize` then makes no protobuf: Feast's own engine makes one for every value before a store sees it. What it
writes are the bytes that `push` of the same rows writes. What it cannot do itself (views with transformations,
aggregations or checks, maps and structs, other online stores) it leaves to Feast's local engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _get_column_names

from feature_repo.stores.latest import LatestJob
from feature_repo.stores.layout import NEVER, PROTOBUF, Layout
from feature_repo.stores.packed import PackedOnlineStore, micros_of

BATCH_ROWS = 10_000


class PackedEngineConfig(LocalComputeEngineConfig):
    """
    Args:
        batch_rows: written at a time; what is in memory is a few times that.
    """

    type: str = "feature_repo.stores.fill.PackedEngine"  # type: ignore[assignment]
    batch_rows: int = BATCH_ROWS


class PackedEngine(LocalComputeEngine):
    """Feast's local engine with a short way into packed stores."""

    def __init__(self, backend: str | None = None, batch_rows: int = BATCH_ROWS, **kwargs: Any) -> None:
        super().__init__(backend=backend, **kwargs)
        self.batch_rows = batch_rows

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        if not (isinstance(self.online_store, PackedOnlineStore) and _is_plain(task.feature_view)):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            self._fill(self.online_store, registry, task)
        except Exception as error:  # Feast raises what a job says went wrong
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _fill(self, store: PackedOnlineStore, registry: BaseRegistry, task: MaterializationTask) -> None:
        view = task.feature_view
        source = view.batch_source
        assert source is not None  # as `_is_plain` saw
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, time, created = _get_column_names(view, entities)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=time,
            created_timestamp_column=created,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        named = dict(source.field_mapping)
        plan = store.prepare(self.repo_config, view)
        for batch in _batches(job, self.batch_rows):
            columns = {
                named.get(name, name): column for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }
            store.write(
                self.repo_config,
                plan,
                plan.keys.of({name: columns[name].to_pylist() for name in plan.keys.types}),
                columns,
                micros_of(columns[named.get(time, time)]),
                micros_of(columns[named.get(created, created)])
                if created
                else np.full(len(batch), NEVER, dtype=np.int64),
            )


def _is_plain(view: FeatureView) -> bool:
    """Whether the rows of its source are its values."""
    extra = ("feature_transformation", "aggregations", "enable_validation", "filter")
    if not (view.online and view.batch_source) or view.offline or any(getattr(view, name, None) for name in extra):
        return False
    return all(slot.item != PROTOBUF for slot in Layout.of_view(view).slots)


def _batches(job: RetrievalJob, rows: int) -> Iterator[pa.RecordBatch]:
    if isinstance(job, LatestJob):
        yield from job.to_batches(rows)
    else:
        yield from job.to_arrow().to_batches(max_chunksize=rows)
