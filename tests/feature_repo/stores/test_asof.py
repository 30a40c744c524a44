"""The ASOF store against a brute-force reference and, where that is right, against Feast's own DuckDB store."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Int64
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.stores.merge import Lookup, join
from feature_repo.stores.packed import micros_of

START = datetime(2015, 3, 28, 22, tzinfo=UTC)  # an hour before clocks change in much of Europe
ASOF = "feature_repo.stores.asof.AsofOfflineStore"
Row = tuple[Any, Any, float, float, int]  # user, POI, hours of event, hours of creation, value


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


class TwoKeyRepo:
    """One view keyed by user and POI; `rows` replaces its source."""

    def __init__(self, root: Path, offline: str, ttl_hours: float, **options: int) -> None:
        self.path = root / "values.parquet"
        self.written = 0
        config = RepoConfig(
            project="tiny",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{root}/{offline[-4:]}.db"},
            offline_store={"type": offline, **options},
            online_store={"type": "sqlite", "path": f"{root}/online.db"},
            entity_key_serialization_version=3,
        )
        source = FileSource(
            path=str(self.path),
            timestamp_field="event",
            created_timestamp_column="created",
            field_mapping={"raw": "value"},
        )
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
        poi = Entity(name="poi", join_keys=["poi_id"], value_type=ValueType.STRING)
        fields = [Field(name="value", dtype=Int64)]
        self.view = FeatureView(
            name="values", entities=[user, poi], ttl=timedelta(hours=ttl_hours), schema=fields, source=source
        )
        self.write([("u", "p", 0, 0, 0)])
        self.store = FeatureStore(config=config)
        self.store.apply([user, poi, self.view])

    def write(self, rows: list[Row]) -> None:
        table = {
            "user_id": pa.array([r[0] for r in rows], pa.string()),
            "poi_id": pa.array([r[1] for r in rows], pa.string()),
            "event": pa.array([at(r[2]) for r in rows], pa.timestamp("us", tz="UTC")),
            "created": pa.array([at(r[3]) for r in rows], pa.timestamp("us", tz="UTC")),
            "raw": pa.array([r[4] for r in rows], pa.int64()),
        }
        pq.write_table(pa.table(table), self.path)
        # DuckDB, as Feast holds it, takes a file of the same second and size for the one that it has read.
        self.written += 1
        os.utime(self.path, (self.written, self.written))

    def values(self, spine: list[tuple[Any, Any, float]], known_only: bool = False) -> list[int | None]:
        frame = pd.DataFrame(
            {
                "row": range(len(spine)),
                "user_id": [s[0] for s in spine],
                "poi_id": [s[1] for s in spine],
                "event_timestamp": [at(s[2]) for s in spine],
            }
        )
        job = self.store.get_historical_features(frame, ["values:value"], filter_by_created_timestamp=known_only)
        table = job.to_arrow().sort_by("row")
        assert table["row"].to_pylist() == list(range(len(spine)))
        return table["value"].to_pylist()


def brute_force(rows: list[Row], spine: list[tuple[Any, Any, float]], ttl: float, known_only: bool) -> list[int | None]:
    answers: list[int | None] = []
    for user, poi, moment in spine:
        seen = [r for r in rows if r[0] == user and r[1] == poi and r[2] <= moment and None not in (user, poi)]
        seen = [r for r in seen if not known_only or r[3] <= moment]
        newest = max(seen, key=lambda r: (r[2], r[3]), default=None)
        answers.append(newest[4] if newest and newest[2] + ttl >= moment else None)
    return answers


@pytest.fixture(scope="module", params=[{}, {"part_rows": 4}], ids=["whole", "in parts"])
def repo(tmp_path_factory, request):
    return TwoKeyRepo(tmp_path_factory.mktemp("asof"), ASOF, ttl_hours=5.5, **request.param)


@pytest.fixture(scope="module")
def feast_repo(tmp_path_factory):
    return TwoKeyRepo(tmp_path_factory.mktemp("duckdb"), "duckdb", ttl_hours=5)


ids = st.sampled_from(["1", "11", "é"])
hours = st.integers(0, 24).map(lambda h: h / 2)
versions = st.lists(st.tuples(ids, ids, hours, hours), max_size=25)
spines = st.lists(st.tuples(st.one_of(st.none(), ids), ids, hours), min_size=1, max_size=20)


def numbered(drawn: list[tuple[Any, Any, float, float]]) -> list[Row]:
    """Versions with a value each; of those with one key, event and creation time only the first (a tie is no order)."""
    unique = {row: None for row in drawn}
    return [(*row, value) for value, row in enumerate(unique)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=versions, spine=spines, known_only=st.booleans())
def test_equals_brute_force(repo, drawn, spine, known_only):
    rows = numbered(drawn)
    repo.write(rows)
    assert repo.values(spine, known_only) == brute_force(rows, spine, 5.5, known_only)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=versions, spine=st.lists(st.tuples(ids, ids, hours), min_size=1, max_size=10), known_only=st.booleans())
def test_equals_feasts_own_store(feast_repo, tmp_path_factory, drawn, spine, known_only):
    rows = numbered(drawn)
    feast_repo.write(rows)
    # Whole hours of TTL only: Feast's DuckDB store cannot take others.
    assert feast_repo.values(spine, known_only) == brute_force(rows, spine, 5, known_only)


def test_a_key_that_is_not_renamed_is_joined_all_the_same(repo):
    repo.write([("u", "p", 0, 0, 7), ("u", "q", 1, 0, 8)])
    service = FeatureService(name="visits", features=[repo.view.with_join_key_map({"user_id": "visitor"})])
    repo.store.apply([service])
    frame = pd.DataFrame({"visitor": ["u", "u"], "poi_id": ["p", "q"], "event_timestamp": [at(2), at(2)]})
    assert repo.store.get_historical_features(frame, service).to_df()["value"].tolist() == [7, 8]


def test_composite_keys_are_not_glued_together(repo):
    repo.write([("1", "11", 0, 0, 7), ("11", "1", 0, 0, 8)])
    assert repo.values([("1", "11", 1), ("11", "1", 1), ("111", "", 1)]) == [7, 8, None]


def test_a_late_correction_replaces_and_a_late_old_value_does_not(repo):
    repo.write([("1", "1", 0, 0, 1), ("1", "1", 0, 3, 2), ("1", "1", 2, 2, 3), ("1", "1", 1, 4, 4)])
    moments = [("1", "1", h) for h in (0, 1.5, 2, 3.5, 4.5)]
    assert repo.values(moments, known_only=True) == [1, 1, 3, 3, 3]


def test_other_time_zones_mean_the_same_moment(repo):
    repo.write([("1", "1", 2, 2, 1), ("1", "1", 3, 3, 2)])
    frame = pd.DataFrame({"user_id": ["1"], "poi_id": ["1"], "event_timestamp": [at(2.5)]})
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_convert("Europe/Helsinki")
    assert repo.store.get_historical_features(frame, ["values:value"]).to_df()["value"].tolist() == [1]


def test_full_feature_names_and_no_rows(repo):
    repo.write([])
    frame = pd.DataFrame({"user_id": ["1"], "poi_id": ["1"], "event_timestamp": [at(1)]})
    table = repo.store.get_historical_features(frame, ["values:value"], full_feature_names=True).to_arrow()
    assert table["values__value"].to_pylist() == [None]


def test_a_query_as_entity_df_is_refused_with_the_remedy(repo):
    with pytest.raises(ValueError, match="run the query first"):
        repo.store.get_historical_features("SELECT 1", ["values:value"]).to_df()


KINDS = {
    "words": pa.array([["a", None], [], None]),
    "pairs": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "fields": pa.array([{"x": 1}, {"x": None}, None]),
    "exact": pa.array(["1.10", "2.20", None]).cast(pa.decimal128(10, 2)),
    "coded": pa.array(["a", "b", None]).dictionary_encode(),
    "short": pa.array([1, 2, None], pa.int8()),
    "raw": pa.array([b"\x00", b"", None]),
}


@pytest.mark.parametrize("part_rows", [100, 1])
@pytest.mark.parametrize("stamp", [pa.timestamp("s"), pa.timestamp("ns", "Europe/Helsinki"), pa.date32(), pa.string()])
def test_values_keep_their_types_and_times_may_have_any(stamp, part_rows):
    days = pa.array([at(-46), at(-22), at(2)], pa.timestamp("s", "UTC"))
    time = pc.strftime(days, "%Y-%m-%dT%H:%M:%SZ") if stamp == pa.string() else days.cast(stamp)
    source = pa.table({"id": pa.array([1, 1, None], pa.int32()), "time": time, **KINDS})
    lookup = Lookup(
        name="kinds",
        relation=source,
        keys={"id": "entity"},
        features={f"{name}_": name for name in KINDS},
        time="time",
        created=None,
        ttl=None,
        known_only=False,
    )
    spine = pa.table({"entity": pa.array([1, 1, 2, None, 1], pa.int64())})
    moments = pa.array([at(0), at(-30), at(0), at(0), at(-99)], pa.timestamp("us", "UTC"))
    found = join(spine, micros_of(moments), lookup, part_rows)
    for name, values in KINDS.items():
        column = found[f"{name}_"]
        assert column.type == values.type
        assert column.to_pylist() == [*values.take(pa.array([1, 0])).to_pylist(), None, None, None], name


def test_nothing_is_asked_of_a_view_without_keys():
    """A view of no entity has one history for all; no entity rows have no answers."""
    source = pa.table({"time": pa.array([at(0), at(1)], pa.timestamp("us")), "n": [1, 2]})
    lookup = Lookup(
        name="all", relation=source, keys={}, features={"n": "n"}, time="time", created=None, ttl=None, known_only=False
    )
    moments = micros_of(pa.array([at(2), at(0.5), at(-1)], pa.timestamp("us")))
    assert join(pa.table({"row": [0, 1, 2]}), moments, lookup, 1)["n"].to_pylist() == [2, 1, None]
    assert join(pa.table({"row": []}), moments[:0], lookup, 100)["n"].to_pylist() == []
