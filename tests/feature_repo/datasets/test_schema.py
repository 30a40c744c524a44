"""The canonical schema refuses every broken table by name and never leaves half a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import DataError, Dataset, RequestField, Schema, Split

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = [START + timedelta(days=d) for d in range(5)]
SPLIT = Split(train=DAYS[1], valid=DAYS[2], test=DAYS[3], end=DAYS[4])
Column = list[object]


def schema() -> Schema:
    return Schema(
        dataset="tiny",
        timezone="Europe/Helsinki",
        split=SPLIT,
        user_attributes=("age",),
        request_fields=(RequestField(name="weather"), RequestField(name="temperature", dtype="float")),
        scene_fields=("weather",),
        statistics=(*columns.USUAL_STATISTICS, "user_specialty"),
        window_days=(1, 365),
        like_minded=True,
    )


def tables() -> dict[str, dict[str, Column]]:
    clock: dict[str, Column] = {"event_timestamp": [START] * 2, "created_timestamp": [START] * 2}
    words: dict[str, Column] = {"text": ["a", "b"]}
    return {
        "impressions": {
            "row_id": [0, 1],
            "request_id": ["r", "r"],
            "event_timestamp": [DAYS[0], DAYS[3]],
            "outcome_timestamp": [DAYS[0], DAYS[3]],
            "user_id": ["u", "v"],
            "poi_id": ["p", "q"],
            "scenario_id": ["s", "t"],
            "click": [1, 0],
            "order": [1, 0],
            "position": [0, None],
            "propensity": [0.5, None],
            "latitude": [60.0, None],
            "longitude": [24.9, None],
            "weather": ["rain", None],
            "temperature": [1.5, None],
        },
        "users": {"user_id": ["u", "v"], **clock, **words, "age": ["9", None]},
        "pois": {
            "poi_id": ["p", "q"],
            **clock,
            **words,
            "name": ["P", "Q"],
            "category": ["c", "d"],
            "specialty": [None, None],
            "open_hours": [None, None],
            "poi_latitude": [None, None],
            "poi_longitude": [None, None],
        },
        "scenarios": {"scenario_id": ["s", "t"], **clock, **words, "name": ["S", "T"]},
    }


def dataset(raw: dict[str, dict[str, Column]]) -> Dataset:
    return Dataset(schema=schema(), tables={name: pa.table(columns) for name, columns in raw.items()})


def test_write_and_read_back(tmp_path: Path) -> None:
    dataset(tables()).write(tmp_path / "sources")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sources"]
    assert Schema.load(tmp_path / "sources" / "schema.json") == schema()
    rows = pq.read_table(tmp_path / "sources" / "impressions.parquet")
    assert rows.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert rows["weather"].to_pylist() == ["rain", None]


@pytest.mark.parametrize("name", ["Category", "NAME", "Poi_Id"])
def test_a_reserved_name_is_reserved_in_any_case(name: str) -> None:
    for changes in ({"poi_attributes": (name,)}, {"request_fields": (RequestField(name=name),), "scene_fields": ()}):
        with pytest.raises(DataError, match=rf"\['{name}'\] are names of the project's own columns; rename yours"):
            replace(schema(), **changes)


def test_names_that_differ_in_case_alone_are_one_name() -> None:
    with pytest.raises(DataError, match=r"used twice: \['Weather', 'weather'\]"):
        replace(schema(), poi_attributes=("Weather",))


def test_a_schema_of_an_older_version_keeps_the_usual_statistics() -> None:
    raw = json.loads(json.dumps(asdict(schema()), default=datetime.isoformat))
    del raw["statistics"], raw["window_days"], raw["like_minded"], raw["shown_in"]
    read = Schema.from_json(json.dumps(raw))
    assert read.statistics == columns.USUAL_STATISTICS and read.window_days == columns.WINDOW_DAYS
    assert not read.like_minded and not read.shown_in


def test_what_is_not_used_is_not_told(tmp_path: Path) -> None:
    """Data sets and bundles of before this flag keep their bytes, and so their hashes."""
    for used in (False, True):
        replace(schema(), shown_in=used).save(tmp_path / "schema.json")
        text = (tmp_path / "schema.json").read_text()
        assert ('"shown_in": true' in text) == ("shown_in" in text) == used
        assert Schema.from_json(text).shown_in == used
    whole = json.dumps(asdict(schema()), indent=1, default=datetime.isoformat)
    assert schema().to_json() == whole.replace(' "shown_in": false,\n', "")


def restricted(shown_in: Column) -> Dataset:
    """The data set with the scenarios that may show each of its two POIs."""
    made = {name: pa.table(columns) for name, columns in tables().items()}
    made["pois"] = made["pois"].append_column("shown_in", pa.array(shown_in, pa.list_(pa.large_string())))
    return Dataset(schema=replace(schema(), shown_in=True), tables=made)


@pytest.mark.parametrize("shown_in", [[None, ["s", "t"]], [[], []], [None, None], [["t", "t"], None]])
def test_a_poi_says_which_scenarios_may_show_it(tmp_path: Path, shown_in: Column) -> None:
    restricted(shown_in).write(tmp_path / "sources")
    assert pq.read_table(tmp_path / "sources" / "pois.parquet")["shown_in"].to_pylist() == shown_in


@pytest.mark.parametrize(
    ("shown_in", "message"),
    [
        ([None, ["s", "x"]], r"pois\.shown_in, row 1: 'x' is not in scenarios; add it there \(1 such rows\)"),
        ([["x", "y"], ["z"]], r"pois\.shown_in, row 0: 'x' is not in scenarios; add it there \(2 such rows\)"),
        ([None, ["s", None]], r"pois\.shown_in, row 1: None is not in scenarios"),
    ],
)
def test_a_poi_of_an_unknown_scenario_is_refused(tmp_path: Path, shown_in: Column, message: str) -> None:
    with pytest.raises(DataError, match=message):
        restricted(shown_in).write(tmp_path / "sources")
    assert not (tmp_path / "sources").exists()


def test_scenarios_of_pois_belong_to_data_sets_that_say_so(tmp_path: Path) -> None:
    whole = restricted([None, None])
    with pytest.raises(DataError, match=r"pois: missing columns \[\], unknown columns \['shown_in'\]"):
        replace(whole, schema=schema()).write(tmp_path / "sources")
    bare = {**whole.tables, "pois": whole.tables["pois"].drop_columns(["shown_in"])}
    with pytest.raises(DataError, match=r"pois: missing columns \['shown_in'\]"):
        replace(whole, tables=bare).write(tmp_path / "sources")
    with pytest.raises(DataError, match=r"shown_in.* are names of the project's own columns"):
        replace(schema(), poi_attributes=("shown_in",))


def set_to(table: str, column: str, row: int, value: object) -> Callable[[dict[str, dict[str, Column]]], None]:
    return lambda raw: raw[table][column].__setitem__(row, value)


def drop(table: str, column: str) -> Callable[[dict[str, dict[str, Column]]], None]:
    return lambda raw: raw[table].__delitem__(column)


REFUSALS: dict[str, tuple[Callable[[dict[str, dict[str, Column]]], None], str]] = {
    "missing table": (lambda raw: raw.__delitem__("pois"), r"tables \['pois'\] are missing"),
    "missing column": (drop("users", "text"), r"users: missing columns \['text'\]"),
    "surplus column": (lambda raw: raw["users"].update(mood=["a", "b"]), r"unknown columns \['mood'\]"),
    "null": (set_to("impressions", "user_id", 1, None), r"impressions\.user_id, row 1: None is empty"),
    "no number": (lambda raw: raw["impressions"].update(click=["yes", "no"]), r"impressions\.click: cannot be read"),
    "no cast": (lambda raw: raw["impressions"].update(latitude=[[1], [2]]), r"impressions\.latitude: cannot be read"),
    "half a click": (lambda raw: raw["impressions"].update(click=[1.0, 0.5]), r"impressions\.click: cannot be read"),
    "row twice": (set_to("impressions", "row_id", 1, 0), r"impressions\.row_id, row 0: 0 stands twice.*2 such rows"),
    "user twice": (set_to("users", "user_id", 1, "u"), r"users\.user_id, row 0: 'u' stands twice"),
    "POI twice": (set_to("pois", "poi_id", 1, "p"), r"pois\.poi_id, row 0: 'p' stands twice"),
    "scenario twice": (set_to("scenarios", "scenario_id", 0, "t"), r"scenarios\.scenario_id, row 0: 't' stands twice"),
    "unknown user": (set_to("impressions", "user_id", 1, "w"), r"impressions\.user_id, row 1: 'w' is not in users"),
    "unknown POI": (set_to("impressions", "poi_id", 0, "w"), r"impressions\.poi_id, row 0: 'w' is not in pois"),
    "unknown scenario": (set_to("impressions", "scenario_id", 0, "w"), r"'w' is not in scenarios"),
    "no label": (set_to("impressions", "click", 0, 2), r"impressions\.click, row 0: 2 is outside 0 \.\. 1"),
    "order alone": (set_to("impressions", "order", 1, 1), r"impressions\.order, row 1: 1 is an order without a click"),
    "propensity": (set_to("impressions", "propensity", 0, 1.5), r"propensity, row 0: 1\.5 is outside 0\.0 \.\. 1\.0"),
    "latitude": (set_to("impressions", "latitude", 0, 91.0), r"latitude, row 0: 91\.0 is outside -90\.0"),
    "longitude": (set_to("pois", "poi_longitude", 1, float("nan")), r"pois\.poi_longitude, row 1: nan is outside"),
    "outcome first": (set_to("impressions", "outcome_timestamp", 1, DAYS[2]), r"row 1: .* lies before its impression"),
    "after the end": (
        lambda raw: raw["impressions"].update(event_timestamp=[DAYS[4]] * 2, outcome_timestamp=[DAYS[4]] * 2),
        r"impressions\.event_timestamp, row 0: .* is not before the end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("standing", [False, True])
def test_refusal_leaves_the_folder_as_it_was(tmp_path: Path, name: str, standing: bool) -> None:
    damage, message = REFUSALS[name]
    if standing:
        dataset(tables()).write(tmp_path / "sources")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    raw = tables()
    damage(raw)
    with pytest.raises(DataError, match=message):
        dataset(raw).write(tmp_path / "sources")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == (["sources"] if standing else [])


def test_the_favourite_of_a_user_stands_once(tmp_path: Path) -> None:
    raw = tables() | {"favourites": {"user_id": ["u1", "u1"], "category": ["pub", "cafe"]}}
    with pytest.raises(DataError, match=r"favourites\.user_id, row 0: 'u1' stands twice"):
        dataset(raw).write(tmp_path / "sources")


def test_oracle_is_checked_too(tmp_path: Path) -> None:
    raw = tables() | {"oracle": {"row_id": [0, 0], "p_click": [0.1, 0.2], "p_order": [0.0, 0.1]}}
    with pytest.raises(DataError, match=r"oracle\.row_id, row 0: 0 stands twice"):
        dataset(raw).write(tmp_path / "sources")
    raw = tables() | {"orakel": {"row_id": [0]}}
    with pytest.raises(DataError, match=r"orakel: no such table"):
        dataset(raw).write(tmp_path / "sources")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user_attributes": ("city",), "poi_attributes": ("city",)}, "used twice.*city"),
        ({"request_fields": (RequestField(name="click"),)}, "click.* are names of the project's own columns"),
        ({"poi_attributes": ("name",)}, "name.* are names of the project's own columns"),
        ({"scene_fields": ("mood",)}, "mood.* are not request fields"),
        ({"statistics": (*columns.USUAL_STATISTICS, "user_mood")}, "no statistics.*user_mood"),
        ({"statistics": ("user", "poi")}, "are missing"),
        ({"window_days": (28, 7)}, "that rise"),
        ({"window_days": (0, 7)}, ">= 1"),
        ({"split": Split(train=DAYS[2], valid=DAYS[1], test=DAYS[3], end=DAYS[4])}, "in time order"),
    ],
)
def test_schema_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Schema(**({"dataset": "d", "timezone": "UTC", "split": SPLIT} | arguments))  # type: ignore[arg-type]


def test_bounds_touch_without_gap_or_overlap() -> None:
    assert [SPLIT.bounds(p) for p in ("history", "train", "valid", "test")] == [
        (None, DAYS[1]),
        (DAYS[1], DAYS[2]),
        (DAYS[2], DAYS[3]),
        (DAYS[3], DAYS[4]),
    ]


def test_borders_are_of_every_user_and_in_order(tmp_path: Path) -> None:
    def borders(users: list[str], valid: datetime) -> pa.Table:
        count = len(users)
        return pa.table({"user_id": users, "valid": [valid] * count, "test": [DAYS[1]] * count})

    made = {name: pa.table(table) for name, table in tables().items()}
    good = {**made, "borders": borders(["u", "v"], DAYS[1])}
    cut = replace(schema(), split=replace(SPLIT, valid=SPLIT.end, test=SPLIT.end))
    Dataset(schema=cut, tables=good).write(tmp_path / "good")
    with pytest.raises(DataError, match=r"user_id, row 1: 'v' is not in borders"):
        Dataset(schema=cut, tables={**made, "borders": borders(["u"], DAYS[1])}).write(tmp_path / "bad")
    with pytest.raises(DataError, match=r"borders\.valid, row 0: .* lies after the test border"):
        Dataset(schema=cut, tables={**made, "borders": borders(["u", "v"], DAYS[2])}).write(tmp_path / "bad")
    with pytest.raises(DataError, match=r"tables \['borders'\] are missing"):
        Dataset(schema=cut, tables=made).write(tmp_path / "bad")
    with pytest.raises(DataError, match="is split at its end by time"):
        Dataset(schema=schema(), tables=good).write(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
