"""An online store of the past: what it held at a moment, and, as the moment moves on, what it held then.

Every view's source rows are written in the order in which they became known (the later of event and creation time), by
the same function that `materialize` and `push` write by. What a request of the log was answered from can so be read
again, exactly, without waiting for the log to be lived through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import yaml
from feast import FeatureStore, FeatureView
from feast.utils import _get_column_names

from feature_repo.stores.duck import relation_of
from feature_repo.stores.layout import NEVER
from feature_repo.stores.merge import source_of
from feature_repo.stores.packed import PackedOnlineStore, Plan, micros_of
from feature_repo.workspace import Workspace

KNOWN, EVENT, CREATED = "__known", "__event", "__created"


def empty_store(workspace: Workspace, folder: Path) -> FeatureStore:
    """The workspace's registry and offline store, with an empty packed online store in `folder`."""
    config = yaml.safe_load(workspace.feature_store_yaml.read_text())
    config["online_store"] = {
        "type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore",
        "path": str(folder / "online.db"),
        "expire": False,
    }
    path = folder / "feature_store.yaml"
    path.write_text(yaml.safe_dump(config))
    return FeatureStore(fs_yaml_file=path)


class Replay:
    """Fills a store that is empty at the start."""

    def __init__(self, store: FeatureStore, views: Sequence[str]) -> None:
        """
        Args:
            store: as `empty_store` makes it.
            views: by name.
        """
        online = store._get_provider().online_store
        assert isinstance(online, PackedOnlineStore)
        self._online = online
        self._config = store.config
        self._feeds = [_feed(store, online, store.get_feature_view(name)) for name in views]

    def advance(self, until_us: int) -> None:
        """Have the store hold what was known at this moment (microseconds UTC), which is no earlier than the last."""
        for feed in self._feeds:
            if len(rows := feed.until(until_us)):
                columns = {name: rows[name] for name in rows.column_names}
                keys = feed.plan.keys.of({name: columns[name].to_pylist() for name in feed.plan.keys.types})
                event, created = (np.asarray(columns[name]) for name in (EVENT, CREATED))
                self._online.write(self._config, feed.plan, keys, columns, event, created)


@dataclass
class _Feed:
    """The rows of one view that are still to come, by when they are known."""

    plan: Plan
    keys: list[str]
    rows: pl.DataFrame
    at: int = 0

    def until(self, moment_us: int) -> pa.Table:
        """Of the rows that become known by this moment, the newest of each entity."""
        end = int(self.rows[KNOWN].search_sorted(moment_us, side="right"))
        fresh, self.at = self.rows[self.at : end], max(self.at, end)
        newest = fresh.sort(EVENT, CREATED, maintain_order=True)
        kept = newest.unique(self.keys, keep="last") if self.keys else newest.tail(1)
        table: pa.Table = kept.to_arrow()
        return table


def _feed(store: FeatureStore, online: PackedOnlineStore, view: FeatureView) -> _Feed:
    source: Any = view.batch_source
    entities = [store.get_entity(name) for name in view.entities]
    keys, features, time, created = _get_column_names(view, entities)
    relation = relation_of(source, str(store.config.repo_path))
    wanted = list(dict.fromkeys([*keys, *features, time, *([created] if created else [])]))
    frame: Any = pl.from_arrow(source_of(view.name, relation, wanted).to_table(wanted))
    event_us = micros_of(frame[time].to_arrow())
    created_us = micros_of(frame[created].to_arrow()) if created else np.full(len(frame), NEVER, dtype=np.int64)
    named = frame.select(pl.col(name).alias(source.field_mapping.get(name, name)) for name in [*keys, *features])
    joined = [source.field_mapping.get(key, key) for key in keys]
    rows = named.with_columns(
        pl.Series(EVENT, event_us), pl.Series(CREATED, created_us), pl.Series(KNOWN, np.maximum(event_us, created_us))
    )
    return _Feed(online.prepare(store.config, view), joined, rows.drop_nulls(joined).sort(KNOWN, maintain_order=True))
