"""The ASOF store at its edges: rows without a moment, keys of other types, names that collide, sources that lack parts.

It answers rightly or says in words what to do.
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
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RequestSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from feast.value_type import ValueType

from feature_repo.stores.duck import DuckConfig
from feature_repo.stores.latest import LatestJob
from feature_repo.stores.merge import Lookup, join
from feature_repo.stores.packed import micros_of
from tests.feature_repo.stores.repos import store_in

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
STAMP = pa.timestamp("us", "UTC")
PARTS = pytest.mark.parametrize("part_rows", [100, 1], ids=["whole", "in parts"])


def versions(ids: Any, **columns: Any) -> pa.Table:
    return pa.table({"id": ids, "at": pa.array([NOON] * len(ids), STAMP), **columns})


def lookup_of(relation: str | pa.Table, *features: str) -> Lookup:
    return Lookup(
        name="values",
        relation=relation,
        keys={"id": "who"},
        features={name: name for name in features or ("n",)},
        time="at",
        created=None,
        ttl=DAY,
        known_only=False,
    )


def joined(relation: str | pa.Table, who: Any, *features: str, part_rows: int = 100) -> dict[str, list[Any]]:
    """What entities see at noon."""
    moments = micros_of(pa.array([NOON] * len(who), STAMP))
    found = join(pa.table({"who": who}), moments, lookup_of(relation, *features), part_rows)
    return {name: column.to_pylist() for name, column in found.items()}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A view `values` of `n` that is 1 for entity 1 and 2 for entity 2, from noon on, and twice as much on demand."""
    pq.write_table(versions([1, 2], n=[1, 2]), tmp_path / "values.parquet")
    made = store_in(tmp_path, "edges", {"type": "sqlite", "path": f"{tmp_path}/online.db"})
    who = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    source = FileSource(path=str(tmp_path / "values.parquet"), timestamp_field="at")
    view = FeatureView(name="values", entities=[who], ttl=DAY, schema=[Field(name="n", dtype=Int64)], source=source)
    times = RequestSource(name="times", schema=[Field(name="times", dtype=Int64)])

    @on_demand_feature_view(sources=[view, times], schema=[Field(name="product", dtype=Int64)])
    def products(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"product": inputs["n"] * inputs["times"]})

    made.apply([who, view, products])
    return made


def asked(store: FeatureStore, times: Any, full_names: bool = False, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"id": [1, 2, 1][: len(times)], **columns, "event_timestamp": times})
    return store.get_historical_features(frame, ["values:n"], full_feature_names=full_names).to_df()


def test_a_row_without_a_moment_sees_nothing(store):
    assert asked(store, [NOON, pd.NaT])["n"].tolist()[0] == 1
    assert asked(store, [NOON, pd.NaT])["n"].isna().tolist() == [False, True]
    assert asked(store, pd.to_datetime([None, None], utc=True))["n"].isna().all()


@PARTS
def test_an_entity_is_nobody_else_by_rounding(part_rows):
    source = versions([1, 2**53 + 1, 3], n=[1, 2, 3])
    found = joined(source, [1.0, 1.5, float("nan"), float(2**53), None], part_rows=part_rows)
    assert found == {"n": [1, None, None, None, None]}
    halves = versions(pa.array([0.5, 1.0], pa.float64()), n=[1, 2])
    assert joined(halves, [0, 1], part_rows=part_rows) == {"n": [None, 2]}
    small = versions(pa.array([1, 2], pa.int8()), n=[1, 2])
    assert joined(small, [257, 2], part_rows=part_rows) == {"n": [None, 2]}
    days = versions(pa.array([NOON.date()]), n=[1])
    midnight = NOON.replace(hour=0)
    assert joined(days, pa.array([NOON, midnight], pa.timestamp("us")), part_rows=part_rows) == {"n": [None, 1]}


@PARTS
def test_whole_numbers_and_their_digits_are_the_same(part_rows):
    words = versions(["1", "02"], n=[1, 2])
    assert joined(words, [1, 2, None], part_rows=part_rows) == {"n": [1, None, None]}
    numbers = versions([1, 2], n=[1, 2])
    assert joined(numbers, ["1", "02", "2.0", "x", None], part_rows=part_rows) == {"n": [1, None, None, None, None]}
    assert joined(numbers, pa.nulls(2), part_rows=part_rows) == {"n": [None, None]}
    nobody = versions(pa.nulls(2), n=[1, 2])
    assert joined(nobody, [1, None], part_rows=part_rows) == {"n": [None, None]}


@pytest.mark.parametrize(
    ("ids", "who", "said"),
    [
        (["1"], [1.0], "column 'who' of the entity rows is double, key 'id' of view 'values' is string"),
        ([1.0], ["1"], "column 'who' of the entity rows is string, key 'id' of view 'values' is double"),
        (["1"], [True], "is bool"),
        ([1], [True], "is bool"),
        (["2024-03-31"], [NOON], r"is timestamp\[us, tz=UTC\]"),
        ([1], [NOON], r"is timestamp\[us, tz=UTC\]"),
        ([1], [[1]], "is list"),
    ],
)
def test_keys_that_can_equal_nothing_are_refused(ids, who, said):
    with pytest.raises(ValueError, match=f"{said}.*cast the column"):
        joined(versions(ids, n=[1]), who)


def test_a_column_by_the_name_of_a_feature_is_refused(store):
    with pytest.raises(
        ValueError, match=r"columns \['n'\] of the entity rows have the names of features of .*'values'"
    ):
        asked(store, [NOON], n=[9])
    both = asked(store, [NOON], n=[9], full_names=True)
    assert both["n"].tolist() == [9] and both["values__n"].tolist() == [1]


def test_a_column_by_the_name_of_a_feature_made_on_demand_is_refused(store):
    frame = pd.DataFrame({"id": [1], "times": [10], "product": [9], "event_timestamp": [NOON]})
    references = ["values:n", "products:product"]
    with pytest.raises(ValueError, match=r"columns \['product'\] of the entity rows .* of view 'products'"):
        store.get_historical_features(frame, references)
    both = store.get_historical_features(frame, references, full_feature_names=True).to_df()
    assert both["product"].tolist() == [9] and both["products__product"].tolist() == [10]


def test_a_result_becomes_a_saved_dataset(store, tmp_path):
    frame = pd.DataFrame({"id": [2, 1], "times": [10, 20], "event_timestamp": [NOON, NOON + 2 * DAY]})
    storage = SavedDatasetFileStorage(str(tmp_path / "kept.parquet"))

    def job() -> Any:
        return store.get_historical_features(frame, ["values:n", "products:product"])

    store.create_saved_dataset(job(), "kept", storage)
    kept = store.get_saved_dataset("kept").to_df().sort_values("event_timestamp")
    assert kept["id"].tolist() == [2, 1] and kept["product"].tolist()[0] == 20
    assert kept["n"].tolist()[0] == 2 and kept["n"].isna().tolist() == [False, True]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(job(), "kept", storage)
    store.create_saved_dataset(job(), "kept", storage, allow_overwrite=True)


def test_a_join_key_that_is_missing_is_named_with_its_view(store):
    frame = pd.DataFrame({"ID": [1], "event_timestamp": [NOON]})
    with pytest.raises(ValueError, match=r"view 'values' is joined by \['id'\].*they have ID, event_timestamp"):
        store.get_historical_features(frame, ["values:n"])


def test_moments_of_several_zones_are_compared_as_moments(store):
    before = NOON - timedelta(microseconds=1)
    zones = [ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata"), UTC]
    found = asked(store, [t.astimezone(z) for t, z in zip((before, NOON, NOON), zones, strict=True)])
    assert found["n"].isna().tolist() == [True, False, False]
    assert found["n"].tolist()[1:] == [2, 1]
    assert found["event_timestamp"].tolist() == [before, NOON, NOON]
    words = asked(store, ["2024-03-31T14:59:59+03:00", "2024-03-31T12:00:00Z", "2024-03-31T05:00:00-07:00"])
    assert words["n"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["values.parquet", "values-*.parquet", "**/values.parquet"])
def test_a_source_that_is_not_there_is_named_with_its_view(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"values.*\.parquet is not there: write the source of view 'values'"):
        joined(str(tmp_path / name), [1])


def test_a_column_that_a_source_lacks_is_named_with_its_view(tmp_path):
    pq.write_table(versions([1], n=[1]), tmp_path / "values.parquet")
    with pytest.raises(ValueError, match=r"source of view 'values' \(.*\) has no columns \['m'\].*it has id, at, n"):
        joined(str(tmp_path / "values.parquet"), [1], "m")
    with pytest.raises(ValueError, match=r"source of view 'values' \(its table\) has no columns \['m'\]"):
        joined(versions([1], n=[1]), [1], "m")


@PARTS
def test_files_written_before_a_column_was_have_nothing_there(tmp_path, part_rows):
    pq.write_table(versions(pa.array([1], pa.int32()), n=[1]), tmp_path / "a.parquet")
    pq.write_table(versions([2**40], m=["two"], n=[2.5]), tmp_path / "b.parquet")
    files = str(tmp_path / "*.parquet")
    assert joined(files, [2**40, 1], "n", "m", part_rows=part_rows) == {"n": [2.5, 1.0], "m": ["two", None]}
    newest = LatestJob(
        relation=files,
        keys=["id"],
        features=["n", "m"],
        time="at",
        created=None,
        between=(NOON, NOON),
        config=DuckConfig(),
    )
    rows = newest.to_arrow().sort_by("id").to_pylist()
    assert [(row["id"], row["n"], row["m"]) for row in rows] == [(1, 1.0, None), (2**40, 2.5, "two")]


def test_files_that_do_not_agree_are_refused(tmp_path):
    pq.write_table(versions([1], n=[1], other=[1]), tmp_path / "a.parquet")
    pq.write_table(versions([2], n=["two"], other=["x"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"files of .*, the source of view 'values', do not agree: .*n.* one type"):
        joined(str(tmp_path / "*.parquet"), [1])


def test_a_life_longer_than_nanoseconds_reach_is_for_ever():
    source = versions([1], n=[1]).set_column(1, "at", pa.array([NOON], pa.timestamp("ns", "UTC")))
    lookup = Lookup(**(vars(lookup_of(source)) | {"ttl": 365_000 * DAY}))
    moments = micros_of(pa.array([NOON], STAMP))
    assert join(pa.table({"who": [1]}), moments, lookup, 100)["n"].to_pylist() == [1]
