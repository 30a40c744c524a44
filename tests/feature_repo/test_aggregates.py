"""Statistics against a brute-force count, on random logs and on moments where mistakes are easy."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import aggregates, columns, scenes
from feature_repo.datasets.schema import TIME, Schema, Split
from feature_repo.workspace import Workspace

START = datetime(2015, 3, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
POIS = {"p0": "soup", "p1": "soup", "p2": "grill"}
SPECIALTIES = {"p0": "a", "p1": "b", "p2": None}
WINDOW_DAYS = (7, 28, 60)
Event = tuple[str, str, int, int, int]  # user, POI, outcome time (us after START), click, order


def write_log(root: Path, events: list[Event]) -> Workspace:
    workspace = Workspace(root)
    workspace.sources.mkdir(parents=True, exist_ok=True)
    split = Split(train=START, valid=START, test=START, end=START + timedelta(days=99))
    kept = {"statistics": tuple(columns.STATISTICS), "window_days": WINDOW_DAYS, "like_minded": True}
    Schema(dataset="tiny", timezone="Europe/Helsinki", split=split, **kept).save(workspace.schema)
    pois = {
        columns.POI_ID: list(POIS),
        columns.CATEGORY: list(POIS.values()),
        columns.SPECIALTY: list(SPECIALTIES.values()),
    }
    pq.write_table(pa.table(pois), workspace.source("pois"))
    times = pa.array([START + timedelta(microseconds=e[2]) for e in events], TIME)
    log = pa.table(
        {
            columns.ROW_ID: pa.array(range(len(events)), pa.int64()),
            columns.EVENT_TIMESTAMP: times,
            columns.OUTCOME_TIMESTAMP: times,
            columns.USER_ID: [e[0] for e in events],
            columns.POI_ID: [e[1] for e in events],
            columns.SCENARIO_ID: ["home"] * len(events),
            columns.CLICK: pa.array([e[3] for e in events], pa.int8()),
            columns.ORDER: pa.array([e[4] for e in events], pa.int8()),
        }
    )
    pq.write_table(log, workspace.source("impressions"))
    aggregates.build(workspace)
    return workspace


def value_as_of(workspace: Workspace, table: str, key: dict[str, str], name: str, moment: datetime) -> int:
    """The newest row of a key at or before a moment, 0 where there is none."""
    where = " AND ".join(f"{column} = '{value}'" for column, value in key.items())
    found = duckdb.sql(
        f"""SELECT {name} FROM read_parquet('{workspace.source(table)}')
        WHERE {where} AND {columns.EVENT_TIMESTAMP} <= TIMESTAMPTZ '{moment.isoformat()}'
        ORDER BY {columns.EVENT_TIMESTAMP} DESC LIMIT 1"""
    ).fetchone()
    return found[0] if found else 0


events = st.tuples(
    st.sampled_from(["u0", "u1"]),
    st.sampled_from(list(POIS)),
    st.integers(0, 40 * DAY_US),
    st.integers(0, 1),
    st.integers(0, 1),
).map(lambda e: (*e[:4], e[3] * e[4]))


@settings(max_examples=25, deadline=None)
@given(log=st.lists(events, min_size=1, max_size=30), day=st.integers(0, 75))
def test_counts_equal_brute_force_at_every_midnight(tmp_path_factory, log, day):
    workspace = write_log(tmp_path_factory.mktemp("log"), log)
    moment = START + timedelta(days=day)
    keys = {"user": {columns.USER_ID: "u0"}, "poi": {columns.POI_ID: "p1"}, "user_category": {}}
    keys["user_category"] = {columns.USER_ID: "u0", columns.CATEGORY_KEY: "soup"}
    keys["user_specialty"] = {columns.USER_ID: "u0", columns.SPECIALTY_KEY: "a"}
    keys["user_poi_daypart"] = {columns.USER_ID: "u0", columns.POI_ID: "p1", columns.DAYPART_KEY: "lunch"}
    for owner, key in keys.items():
        for days in WINDOW_DAYS:
            inside = [e for e in log if (day - days) * DAY_US <= e[2] < day * DAY_US]
            mine = [e for e in inside if _belongs(e, key)]
            expected = (len(mine), sum(e[3] for e in mine), sum(e[4] for e in mine))
            for count, number in zip(columns.COUNTS, expected, strict=True):
                name = columns.statistic(owner, count, days)
                assert value_as_of(workspace, aggregates.table_of(owner), key, name, moment) == number, name


def _belongs(event: Event, key: dict[str, str]) -> bool:
    moment = np.array([int(START.timestamp() * 1e6) + event[2]])
    mine = {
        columns.USER_ID: event[0],
        columns.POI_ID: event[1],
        columns.CATEGORY_KEY: POIS[event[1]],
        columns.SPECIALTY_KEY: SPECIALTIES[event[1]],
        columns.DAYPART_KEY: scenes.daypart_keys(moment, "Europe/Helsinki")[0],
    }
    return all(mine[column] == value for column, value in key.items())


days = st.integers(0, 9)  # busy ones, so that logs share some


@settings(max_examples=25, deadline=None)
@given(
    log=st.lists(st.tuples(events, days), min_size=1, max_size=25),
    later=st.lists(st.tuples(events, days), min_size=1, max_size=10),
    gone=st.sets(st.integers(0, 24), max_size=3),
)
def test_a_log_that_changed_is_counted_as_if_it_had_been_so_from_the_beginning(tmp_path_factory, log, later, gone):
    def moved(some):
        return [(user, poi, time % DAY_US + day * 8 * DAY_US, *rest) for (user, poi, time, *rest), day in some]

    root = tmp_path_factory.mktemp("log")
    write_log(root / "grown", moved(log))
    changed = [event for at, event in enumerate(moved(log)) if at not in gone] + moved(later)
    grown, anew = write_log(root / "grown", changed), write_log(root / "anew", changed)
    for path in aggregates.build(anew):
        assert pq.read_table(grown.source(path.stem)).equals(pq.read_table(path)), path.stem


def test_days_that_did_not_change_are_not_counted_again(tmp_path, monkeypatch):
    log = [("u0", "p0", day * DAY_US, 1, 0) for day in range(0, 80, 4)]
    workspace = write_log(tmp_path, log)
    asked = []
    query = aggregates._query
    monkeypatch.setattr(aggregates, "_query", lambda *of: asked.append(of[-1]) or query(*of))
    aggregates.build(workspace)
    assert asked == []
    write_log(tmp_path, [*log, ("u1", "p1", 81 * DAY_US + 5, 1, 0)])
    assert set(asked) == {START + timedelta(days=81)}
    asked.clear()
    write_log(tmp_path, [*log[:10], ("u1", "p1", 38 * DAY_US, 1, 0), *log[10:]])
    assert set(asked) == {START + timedelta(days=38)}


def test_a_file_that_is_not_as_it_was_written_and_a_run_that_broke_off_are_counted_from_the_beginning(
    tmp_path, monkeypatch
):
    workspace = write_log(tmp_path, [("u0", "p0", day * DAY_US, 1, 0) for day in range(5)])
    whole = pq.read_table(workspace.source("poi_stats"))
    pq.write_table(whole.slice(1), workspace.source("poi_stats"))
    aggregates.build(workspace)
    assert pq.read_table(workspace.source("poi_stats")).equals(whole)
    longer = [("u0", "p0", day * DAY_US, 1, 0) for day in range(6)]
    with monkeypatch.context() as broken:
        broken.setattr(aggregates, "state_sql", lambda: "SELECT no_such_column")
        with pytest.raises(duckdb.Error):
            write_log(tmp_path, longer)
    again, anew = write_log(tmp_path, longer), write_log(tmp_path / "anew", longer)
    for path in aggregates.build(anew):
        assert pq.read_table(again.source(path.stem)).equals(pq.read_table(path))


def test_statistics_are_carried_over_a_change_of_the_source_tables(tmp_path):
    workspace = write_log(tmp_path, [("u0", "p0", 5, 1, 0)])
    names = [path.name for path in aggregates.build(workspace)] + ["counted.json"]
    kept = {name: (workspace.sources / name).read_bytes() for name in names}
    whole = {path.name: path.read_bytes() for path in workspace.sources.iterdir() if path.name not in names}
    with aggregates.carried(workspace) as before:
        shutil.rmtree(workspace.sources)
        workspace.sources.mkdir()
        for name, data in whole.items():
            (workspace.sources / name).write_bytes(data)
        assert not (workspace.sources / "user_state.parquet").exists(), "a run that breaks off here leaves none"
        aggregates.build(workspace, before=before)
    assert {name: (workspace.sources / name).read_bytes() for name in names} == kept
    assert not list(workspace.root.glob(".carried-*"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_clicks_of_one_moment_are_a_set_and_the_later_id_is_the_newer(tmp_path, order):
    clicks = [("u0", "p1", 5, 1, 0), ("u0", "p2", 5, 1, 0), ("u0", "p1", 5, 1, 1)]
    workspace = write_log(tmp_path, [clicks[at] for at in order])
    (state,) = pq.read_table(workspace.source("user_state")).to_pylist()
    assert state[columns.RECENT_POIS] == ["p2", "p1"] and state[columns.LAST_CATEGORY] == "grill"
    assert state[columns.LAST_ORDER_TIME] == int((START + timedelta(microseconds=5)).timestamp() * 1e6)


def test_a_poi_without_a_specialty_counts_for_none(tmp_path):
    workspace = write_log(tmp_path, [("u0", "p2", 5, 1, 0), ("u0", "p1", 5, 1, 0)])
    kept = pq.read_table(workspace.source("user_specialty_stats"))
    assert set(kept[columns.SPECIALTY_KEY].to_pylist()) == {"b"}


def test_only_the_statistics_that_a_dataset_keeps_are_written(tmp_path):
    workspace = write_log(tmp_path, [("u0", "p1", 5, 1, 0)])
    others = {"user_state.parquet", "like_minded.parquet"}
    written = {path.name for path in aggregates.build(workspace)}
    assert written == {f"{owner}_stats.parquet" for owner in columns.STATISTICS} | others
    schema = Schema.load(workspace.schema)
    replace(schema, statistics=columns.USUAL_STATISTICS, window_days=(7,)).save(workspace.schema)
    written = {path.name for path in aggregates.build(workspace)}
    assert written == {f"{owner}_stats.parquet" for owner in columns.USUAL_STATISTICS} | others
    assert "poi_clicks_28d" not in pq.read_schema(workspace.source("poi_stats")).names


def test_an_event_is_not_counted_before_the_day_is_over(tmp_path):
    workspace = write_log(tmp_path, [("u0", "p0", 5 * DAY_US + 1, 1, 0)])
    seen = [
        value_as_of(workspace, "poi_stats", {columns.POI_ID: "p0"}, "poi_clicks_7d", START + timedelta(days=d))
        for d in (5.9, 6, 12.9, 13)
    ]
    assert seen == [0, 1, 1, 0]


def test_state_is_stamped_after_the_click_that_caused_it(tmp_path):
    workspace = write_log(tmp_path, [("u0", "p0", 1000, 1, 1), ("u0", "p2", 1000, 1, 0), ("u0", "p1", 9000, 0, 0)])
    state = pq.read_table(workspace.source(aggregates.USER_STATE)).to_pylist()
    assert len(state) == 1  # two clicks at one time are one change; an impression without a click is none
    click = START + timedelta(microseconds=1000)
    assert state[0][columns.EVENT_TIMESTAMP] == START + timedelta(seconds=1)
    assert state[0][columns.RECENT_POIS] == ["p2", "p0"]
    assert state[0][columns.LAST_CATEGORY] == "grill"
    assert state[0][columns.LAST_ORDER_TIME] == int(click.timestamp() * 1e6)


def test_recent_pois_are_the_newest_ones_in_order(tmp_path):
    clicks = [("u0", f"p{i % 3}", i * DAY_US, 1, 0) for i in range(columns.RECENT_LENGTH + 5)]
    newest = pq.read_table(write_log(tmp_path, clicks).source(aggregates.USER_STATE)).to_pylist()[-1]
    expected = [f"p{i % 3}" for i in range(columns.RECENT_LENGTH + 4, 4, -1)]
    assert newest[columns.RECENT_POIS] == expected and len(newest[columns.RECENT_TIMES]) == columns.RECENT_LENGTH


@pytest.mark.parametrize("moment", ["2015-03-29T00:30:00", "2015-03-29T01:30:00", "2015-10-25T00:30:00"])
def test_the_daypart_of_a_statistic_is_the_daypart_of_a_request(tmp_path, moment):
    us = np.datetime64(moment, "us").astype(np.int64)
    workspace = write_log(tmp_path, [("u0", "p0", int(us - START.timestamp() * 1e6), 1, 0)])
    key = pq.read_table(workspace.source("poi_daypart_stats"))[columns.DAYPART_KEY][0].as_py()
    assert [key] == scenes.daypart_keys(np.array([us]), "Europe/Helsinki")


def test_names_of_folders_and_of_fields_of_a_log_are_nobody_s_business(tmp_path):
    """A quote in the path, and a request field called as a step of ours is."""
    events = [("u0", "p0", 5 * DAY_US, 1, 0), ("u0", "p1", 6 * DAY_US, 0, 0)]
    plain, odd = write_log(tmp_path / "plain", events), write_log(tmp_path / "o'brien", events)
    named = pq.read_table(odd.source("impressions"))
    pq.write_table(named.append_column("midnight", pa.array(["x", "y"])), odd.source("impressions"))
    aggregates.build(odd)
    more = [*events, ("u1", "p2", 8 * DAY_US, 1, 1)]
    write_log(plain.root, more), write_log(odd.root, more)
    for table in ("poi_stats", "user_category_stats", "like_minded", aggregates.USER_STATE):
        assert pq.read_table(odd.source(table)).equals(pq.read_table(plain.source(table)))
