"""A store of the past over the files of a Feast user's own repository."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, String

from feature_repo.stores.packed import microseconds, packed_store
from serving.replay import Replay
from tests.feature_repo.stores.repos import store_in

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
STAMP = pa.timestamp("us", "UTC")


def test_files_written_before_a_column_was_have_nothing_there(tmp_path: Path) -> None:
    early = {"id": pa.array([1, 2], pa.int32()), "n": [1, 2], "at": pa.array([NOON, NOON], STAMP)}
    late = {"id": [2, 2], "at": pa.array([NOON + HOUR, NOON + HOUR], STAMP), "n": [3, 4], "m": ["three", "four"]}
    pq.write_table(pa.table(early), tmp_path / "a.parquet")
    pq.write_table(pa.table(late), tmp_path / "b.parquet")
    store = store_in(
        tmp_path,
        "replay",
        {
            "type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore",
            "path": f"{tmp_path}/online.db",
            "expire": False,
        },
    )
    who = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    source = FileSource(path=str(tmp_path / "*.parquet"), timestamp_field="at")
    fields = [Field(name="n", dtype=Int64), Field(name="m", dtype=String)]
    view = FeatureView(name="values", entities=[who], ttl=24 * HOUR, schema=fields, source=source)
    store.apply([who, view])
    past, online = Replay(store, ["values"]), packed_store(store)
    assert online is not None

    def held(moment: datetime) -> list[tuple[int | None, str | None]]:
        past.advance(microseconds(moment))
        found = online.read_columns(store.config, view, {"id": [1, 2]}, at=moment).values
        return list(zip(found["n"].to_pylist(), found["m"].to_pylist(), strict=True))

    assert held(NOON - HOUR) == [(None, None), (None, None)]
    assert held(NOON) == [(1, None), (2, None)]
    assert held(NOON + HOUR) == [(1, None), (4, "four")]
