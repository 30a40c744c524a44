"""What may be a join key, and what is said of one that may not; keys of times through a whole store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Bytes, FeastType, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from feature_repo.stores.keys import EntityKeys
from feature_repo.stores.packed import packed_store
from tests.feature_repo.stores.repos import store_in

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
HELSINKI = ZoneInfo("Europe/Helsinki")


def store_of(root: Path, hours: pa.Array, engine: str) -> FeatureStore:
    """One view of what happened in an hour, its entity."""
    root.mkdir()
    rows = {"hour": hours, "n": list(range(len(hours))), "at": pa.array([NOON] * len(hours), pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table(rows), root / "hours.parquet")
    online = {
        "type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore",
        "path": str(root / "online.db"),
        "expire": False,
    }
    store = store_in(root, "hours", online, {"type": engine})
    hour = Entity(name="hour", join_keys=["hour"], value_type=ValueType.UNIX_TIMESTAMP)
    source = FileSource(path=str(root / "hours.parquet"), timestamp_field="at")
    store.apply(
        [hour, FeatureView(name="hours", entities=[hour], schema=[Field(name="n", dtype=Int64)], source=source)]
    )
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
    return store


@pytest.mark.parametrize("stamp", [pa.timestamp("s"), pa.timestamp("us", "Europe/Helsinki"), pa.timestamp("ns")])
def test_keys_that_are_times_are_found_online_by_the_moment(tmp_path, stamp):
    moments = [NOON, NOON + timedelta(hours=1), NOON + timedelta(hours=2)]
    hours = pa.array(moments, pa.timestamp("s", "UTC")).cast(stamp)
    feasts = store_of(tmp_path / "feast", hours, "local")
    for store in (feasts, store_of(tmp_path / "packed", hours, "feature_repo.stores.fill.PackedEngine")):
        named: list[dict[str, Any]] = [{"hour": moments[2].astimezone(HELSINKI)}, {"hour": moments[0]}]
        answer = store.get_online_features(features=["hours:n"], entity_rows=named).to_dict()
        assert answer["n"] == [2, 0]
        online = packed_store(store)
        assert online is not None
        asked = {
            "hour": [moments[1].astimezone(HELSINKI), moments[0].replace(tzinfo=None), int(moments[2].timestamp())]
        }
        read = online.read_columns(store.config, store.get_feature_view("hours"), asked, at=NOON)
        assert read.values["n"].to_pylist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        (Int64, 1.5, "1.5 is no value of join key 'k', which has type Int64"),
        (Int64, float("nan"), "nan is no value of join key 'k'"),
        (Int64, "1", "'1' is no value of join key 'k'"),
        (Int64, NOON, r"datetime.datetime\(2024, .* is no value of join key 'k', which has type Int64"),
        (Int32, 2**31, "2147483648 is no value of join key 'k', which has type Int32"),
        (String, "\ud800", r"'\\ud800' is no value of join key 'k'"),
        (Bytes, "text", "'text' is no value of join key 'k', which has type Bytes"),
        (UnixTimestamp, 1.5, "1.5 is no value of join key 'k', which has type UnixTimestamp"),
        (Float64, 1.0, "join key 'k' has type Float64, which Feast's keys have not: declare its entity as String"),
    ],
)
def test_what_is_no_key_is_refused_by_its_name(dtype: FeastType, value: Any, said: str):
    good: dict[FeastType, Any] = {String: "a", Bytes: b"a"}
    with pytest.raises(ValueError, match=said):
        EntityKeys({"k": dtype}).of({"k": [good.get(dtype, 1), value]})


def test_a_whole_number_is_an_entity_whatever_holds_it():
    keys = EntityKeys({"k": Int64})
    assert keys.of({"k": [1.0, -3.0]}) == keys.of({"k": [1, -3]})
