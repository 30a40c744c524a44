from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from feature_repo import columns
from feature_repo.store import open_store
from serving.features import FeatureReader
from serving.online import ServiceMismatch, ValueStatus
from serving.request import Place, RequestContext
from trainers.batch import OUTCOMES, Batch

WINDOWS = (7, 28, 365)  # those of the prepared workspace: a count is stale after more than the longest
WORDS = ("weather", "temperature", "place_kind", "company", "landmark", "occasion")


@pytest.fixture(scope="module")
def store(workspace, pipeline):
    return open_store(workspace)


@pytest.fixture(scope="module")
def reader(store, pipeline):
    return FeatureReader(store, pipeline.bundle)


def microseconds(moment):
    return int(pd.Timestamp(moment).value // 1000)


def read(reader, user_id, poi_ids, moment):
    context = RequestContext(user_id=user_id, scenario_id="search")
    return reader.read_pois(reader.read_context(context, microseconds(moment)), poi_ids)


def write(store, view, moment, **values):
    """One row of a view, as a stream would write it."""
    row = {**values, columns.EVENT_TIMESTAMP: moment, columns.CREATED_TIMESTAMP: moment}
    store.write_to_online_store(view, pd.DataFrame([row]))


def view_of(reading, name):
    return next(view for view in reading.views if view.view == name)


def test_the_columns_are_bit_by_bit_those_of_an_offline_pull(workspace, reader, pipeline, moment):
    offline = pq.read_table(workspace.root / "offline.parquet")
    encoding = pipeline.bundle.encoding
    for i, row in enumerate(offline.to_pylist()):
        context = RequestContext(
            user_id=row[columns.USER_ID],
            scenario_id=row[columns.SCENARIO_ID],
            place=Place(row[columns.LATITUDE], row[columns.LONGITUDE]),
            scene_inputs={name: row[name] for name in WORDS if row[name] is not None},
        )
        online = reader.read_pois(reader.read_context(context, microseconds(moment)), [row[columns.POI_ID]]).table
        expected = offline.slice(i, 1)
        for name in online.column_names:
            assert online[name].to_pylist() == expected[name].to_pylist(), name
            assert online[name].type == expected[name].type, name
        ours, theirs = Batch.from_arrow(online, encoding), Batch.from_arrow(expected, encoding)
        for f in fields(Batch):
            if f.name not in OUTCOMES:
                assert torch.equal(getattr(ours, f.name), getattr(theirs, f.name)), f.name


def test_rows_read_together_are_the_rows_read_alone(reader, poi_ids, moment):
    some = ["nowhere", *poi_ids[:4]]
    together = read(reader, "u5", some, moment).table
    alone = pa.concat_tables([read(reader, "u5", [poi_id], moment).table for poi_id in some])
    assert together.combine_chunks().equals(alone.combine_chunks())


@pytest.mark.parametrize("user_id", ["u3", "nobody"])
def test_what_rows_share_is_encoded_once_and_to_the_same_bits(reader, pipeline, poi_ids, moment, user_id):
    rows = read(reader, user_id, ["nowhere", *poi_ids[:9]], moment).rows
    assert len(rows.columns["scene_daypart"]) == 1 and len(rows.columns[columns.CATEGORY]) == len(rows) == 10
    shared = Batch.from_arrow(rows, pipeline.bundle.encoding)
    spread = Batch.from_arrow(rows.table(), pipeline.bundle.encoding)
    assert len(shared) == len(spread) == 10
    for f in fields(Batch):
        ours, theirs = getattr(shared, f.name), getattr(spread, f.name)
        assert ours is theirs is None or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype), f.name


def test_a_value_holds_to_the_end_of_its_time_to_live_and_not_longer(store, reader, poi_ids, moment):
    clicked = {
        columns.RECENT_POIS: ["p1"],
        columns.RECENT_TIMES: [5],
        columns.LAST_CATEGORY: "ramen bar",
        columns.LAST_SPECIALTY: "ramen",
        columns.LAST_ORDER_TIME: 7,
    }
    write(store, "user_state", moment, user_id="sleeper", **clicked)
    at_the_edge = read(reader, "sleeper", poi_ids[:1], moment + timedelta(days=28))
    assert at_the_edge.table[columns.RECENT_POIS].to_pylist() == [["p1"]]
    assert at_the_edge.table["scene_last_category"].to_pylist() == ["ramen bar"]
    assert view_of(at_the_edge, "user_state").present == len(clicked)
    late = read(reader, "sleeper", poi_ids[:1], moment + timedelta(days=28, microseconds=1))
    assert [late.table[name].to_pylist() for name in clicked] == [[None]] * len(clicked)
    assert late.table["scene_last_category"].to_pylist() == [None]
    assert view_of(late, "user_state").stale == len(clicked)
    assert view_of(late, "user_state").newest_us is None


def test_an_unknown_user_and_poi_are_missing_whatever_the_store_says(reader, poi_ids, moment):
    reading = read(reader, "nobody", [poi_ids[0], "nowhere"], moment)
    assert reading.poi_statuses == (ValueStatus.PRESENT, ValueStatus.MISSING)
    assert reading.names[1] is None
    assert reading.table["poi_clicks_28d"].to_pylist()[1] is None
    assert view_of(reading, "user_stats").missing == len(columns.COUNTS) * len(WINDOWS)
    context = reader.read_context(RequestContext(user_id="nobody", scenario_id="search"), microseconds(moment))
    assert context.user_status is ValueStatus.MISSING


def test_a_null_of_a_known_poi_is_missing_and_the_poi_is_not(store, reader, moment):
    described = {"category": "cafe", "specialty": None, "open_hours": None, "price_level": "€", "street": None}
    write(store, "poi_profile", moment, poi_id="bare", name="Bare", **described, poi_latitude=None, poi_longitude=None)
    reading = read(reader, "u1", ["bare"], moment)
    assert reading.poi_statuses == (ValueStatus.PRESENT,)
    assert (view_of(reading, "poi_profile").present, view_of(reading, "poi_profile").missing) == (3, 5)


@pytest.mark.parametrize(("version", "row", "seen"), [("v1", 1, 1), ("v2", 1, None), ("v1", 10_000, None)])
def test_knowledge_of_another_version_or_beyond_the_matrix_is_missing(store, reader, moment, version, row, seen):
    poi = f"{version}-{row}"
    values = {"poi_text_row": row, "poi_text_version": version, "poi_text_text_hash": "h", "poi_text_vector": [0.0] * 8}
    write(store, "poi_text", moment, poi_id=poi, **values)
    reading = read(reader, "u1", [poi], moment)
    assert reading.table["poi_text_row"].to_pylist() == [seen]
    assert view_of(reading, "poi_text").missing == (0 if seen else 1)


def test_a_scene_value_that_nobody_embedded_has_no_vector_and_says_so(reader, moment):
    context = RequestContext(user_id="u1", scenario_id="search", scene_inputs={"weather": "frogs"})
    reading = reader.read_context(context, microseconds(moment))
    weather = next(aspect for aspect in reading.scene if aspect.feature == "weather")
    assert (weather.value, weather.known, weather.has_vector) == ("frogs", False, False)
    assert reading.table["scene_weather_row"].to_pylist() == [0]
    daypart = next(aspect for aspect in reading.scene if aspect.feature == "daypart")
    assert (daypart.known, daypart.has_vector) == (True, True)


def test_the_age_of_what_was_read_is_that_of_the_present_values(store, reader, moment):
    counts = {columns.statistic("poi", c, d): 1 for c in columns.COUNTS for d in WINDOWS}
    for poi_id, days in (("young", 1), ("old", 20), ("dead", 367)):
        write(store, "poi_stats", moment - timedelta(days=days), poi_id=poi_id, **counts)
    view = view_of(read(reader, "u1", ["young", "old", "dead"], moment), "poi_stats")
    assert view.oldest_us == microseconds(moment - timedelta(days=20))
    assert view.newest_us == microseconds(moment - timedelta(days=1))
    assert (view.present, view.stale) == (18, 9)


def test_a_bundle_of_other_scene_declarations_is_refused(store, pipeline):
    manifest = replace(pipeline.bundle.manifest, scene_fingerprints={"daypart": "0123"})
    with pytest.raises(ServiceMismatch, match="'daypart' is declared otherwise"):
        FeatureReader(store, replace(pipeline.bundle, manifest=manifest))


@pytest.mark.parametrize(
    ("reference", "message"), [("tides:height", "no view 'tides'"), ("poi_profile:stars", r"no \['stars'\]")]
)
def test_a_bundle_that_reads_what_the_store_lacks_is_refused(store, pipeline, reference, message):
    manifest = replace(pipeline.bundle.manifest, features=(*pipeline.bundle.manifest.features, reference))
    with pytest.raises(ServiceMismatch, match=message):
        FeatureReader(store, replace(pipeline.bundle, manifest=manifest))
