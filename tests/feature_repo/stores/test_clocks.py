"""When clocks change: a moment is a moment, whatever the clock on the wall says of it.

In Helsinki the hour from 3 to 4 is skipped on 2024-03-31 and comes twice on 2024-10-27; both changes are at 1 UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import String
from feast.value_type import ValueType

from feature_repo.stores.packed import packed_store
from tests.feature_repo.stores.repos import store_in

HELSINKI = ZoneInfo("Europe/Helsinki")
SPRING, AUTUMN = datetime(2024, 3, 31), datetime(2024, 10, 27)
HALF_HOUR, TICK = timedelta(minutes=30), timedelta(microseconds=1)


def wall(day: datetime, hour: int, minute: int, second_time: bool = False) -> datetime:
    """What the clock in Helsinki shows."""
    return day.replace(hour=hour, minute=minute, tzinfo=HELSINKI, fold=int(second_time))


# The clock on the wall, and the time in UTC of the last whole half hour before it.
SEEN = [
    (wall(SPRING, 2, 45), "03-31 00:30"),
    (wall(SPRING, 2, 59), "03-31 00:30"),
    (wall(SPRING, 4, 0), "03-31 01:00"),
    (wall(SPRING, 4, 15), "03-31 01:00"),
    (wall(SPRING, 3, 30), "03-31 01:30"),  # no clock shows it; counted on from before the change
    (wall(AUTUMN, 2, 45), "10-26 23:30"),
    (wall(AUTUMN, 3, 15), "10-27 00:00"),
    (wall(AUTUMN, 3, 45), "10-27 00:30"),
    (wall(AUTUMN, 3, 15, second_time=True), "10-27 01:00"),
    (wall(AUTUMN, 3, 45, second_time=True), "10-27 01:30"),
    (wall(AUTUMN, 4, 15), "10-27 02:00"),
]


def store_of(root: Path, moments: list[datetime], stamp: pa.DataType) -> FeatureStore:
    """A view of one entity whose value at each moment is that moment in words of UTC; it lives an hour."""
    said = [f"{moment:%m-%d %H:%M}" for moment in moments]
    at = pa.array(moments, pa.timestamp("us", "UTC")).cast(stamp)
    pq.write_table(pa.table({"poi": ["p"] * len(moments), "said": said, "at": at}), root / "said.parquet")
    online = {"type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore", "path": str(root / "online.db")}
    store = store_in(root, "clocks", online, {"type": "feature_repo.stores.fill.PackedEngine"})
    poi = Entity(name="poi", join_keys=["poi"], value_type=ValueType.STRING)
    source = FileSource(path=str(root / "said.parquet"), timestamp_field="at")
    fields = [Field(name="said", dtype=String)]
    store.apply([poi, FeatureView(name="clock", entities=[poi], ttl=timedelta(hours=1), schema=fields, source=source)])
    return store


def seen(store: FeatureStore, times: Any) -> list[str | None]:
    frame = pd.DataFrame({"poi": ["p"] * len(times), "event_timestamp": times})
    return store.get_historical_features(frame, ["clock:said"]).to_arrow()["said"].to_pylist()


STAMPS = [pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "Europe/Helsinki")]


@pytest.fixture(scope="module", params=STAMPS, ids=str)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Both nights, a version every half hour."""
    starts = [day.replace(tzinfo=UTC) - timedelta(hours=2) for day in (SPRING, AUTUMN)]
    return store_of(
        tmp_path_factory.mktemp("clocks"), [start + n * HALF_HOUR for start in starts for n in range(14)], request.param
    )


def test_local_times_see_what_was_there_at_that_moment(store):
    times, answers = [time for time, _ in SEEN], [said for _, said in SEEN]
    assert seen(store, pd.Series(times, dtype=object)) == answers, "a column of datetimes"
    assert seen(store, times) == answers, "a column of one zone"
    assert seen(store, [time.isoformat() for time in times]) == answers, "a column of words"
    assert seen(store, [time.astimezone(UTC).replace(tzinfo=None) for time in times]) == answers, "in UTC, unsaid"


def test_materialize_up_to_a_local_time_takes_what_was_there_at_that_moment(store):
    online = packed_store(store)
    assert online is not None
    for time, said in sorted(SEEN, key=lambda seen: seen[0].astimezone(UTC)):  # what is newer stays
        store.materialize(time - timedelta(hours=3), time)
        found = online.read_columns(store.config, store.get_feature_view("clock"), {"poi": ["p"]}, at=time)
        assert found.values["said"].to_pylist() == [said], time


@pytest.mark.parametrize(
    ("born", "dies"),
    [
        (wall(SPRING, 2, 30), wall(SPRING, 4, 30)),  # an hour, though the clock went on by two
        (wall(AUTUMN, 3, 30), wall(AUTUMN, 3, 30, second_time=True)),  # an hour, though the clock shows the same
    ],
)
def test_an_hour_to_live_is_an_hour(tmp_path, born, dies):
    store = store_of(tmp_path, [born.astimezone(UTC)], pa.timestamp("us", "UTC"))
    said = f"{born.astimezone(UTC):%m-%d %H:%M}"
    assert seen(store, [born, dies]) == [said, said]
    before, after = born.astimezone(UTC) - TICK, dies.astimezone(UTC) + TICK
    assert seen(store, [before.astimezone(HELSINKI), after.astimezone(HELSINKI)]) == [None, None]
