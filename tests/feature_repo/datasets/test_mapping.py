"""The mapping loader: the documented example, every refusal, and time splits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from feast.driver_test_data import create_orders_df

from feature_repo import columns
from feature_repo.datasets import mapping, tables
from feature_repo.datasets.schema import DataError, Dataset

DOCUMENT = Path(__file__).parents[3] / "docs" / "mapping.md"
NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The files of the documented example, in a folder of their own; returns the mapping file."""
    blocks = re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    for name, content in blocks:
        (tmp_path / name).write_text(content)
    return tmp_path / "lunches.yaml"


def load(file: Path) -> Dataset:
    return mapping.load(mapping.MappingConfig(file=file, now=NOW))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{old!r} is not in {file.name}"
    file.write_text(text.replace(old, new, 1))


def frame(dataset: Dataset, table: str) -> pl.DataFrame:
    read = pl.from_arrow(dataset.tables[table])
    assert isinstance(read, pl.DataFrame)
    return read


def test_documented_example(example: Path, tmp_path: Path) -> None:
    dataset = load(example)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows["click"].to_list() == [1, 0, 1, 0, 1, 0, 1, 1]
    assert rows["order"].to_list() == [1, 0, 0, 0, 1, 0, 1, 0]
    assert rows["rainfall"].to_list()[:4] == ["0.1 to 5", "0.1 to 5", "below 0.1", "5 or more"]
    assert rows["event_timestamp"][0] == datetime(2024, 3, 1, 9, 58, tzinfo=UTC), "Helsinki is UTC+2 in March"
    assert (rows["outcome_timestamp"] - rows["event_timestamp"])[0].total_seconds() == 40
    assert rows["request_id"].n_unique() == 7, "two rows of one user at one time are one request"
    assert frame(dataset, "users")["user_id"].to_list() == ["ann", "bob", "cid"]
    pois = frame(dataset, "pois")
    assert pois["text"][0] == "Salmon soup, a warm lunch for 12 euros."
    assert pois["price"].to_list() == ["12", "11", "7"]
    scenarios = frame(dataset, "scenarios")
    assert scenarios.filter(scenario_id="lunch")["name"].item() == "Lunch page"
    assert scenarios["scenario_id"].to_list() == ["home", "lunch"]
    assert dataset.schema.scene_fields == ("weather", "rainfall")
    assert dataset.schema.split.train == datetime(2024, 3, 1, 22, tzinfo=UTC)
    assert pl.read_parquet(tmp_path / "sources" / "impressions.parquet").height == 8


def test_derived_entities_start_with_their_first_row(example: Path) -> None:
    users = frame(load(example), "users")
    bob = users.filter(user_id="bob")
    assert bob["event_timestamp"].item() == datetime(2024, 3, 1, 10, 10, tzinfo=UTC)
    assert bob["created_timestamp"].item() == bob["event_timestamp"].item()


# (file to damage, text, replacement, what the message must contain)
REFUSALS = {
    "misspelt key": ("lunches.yaml", "  click:", "  clik:", ["lunches.yaml", "columns.clik", "did you mean 'click'"]),
    "misspelt nested key": ("lunches.yaml", "borders:", "bordrs:", ["scene.1.bordrs", "did you mean 'borders'"]),
    "missing key": ("lunches.yaml", "  time: shown_at\n", "", ["columns.time", "missing"]),
    "no yaml": ("lunches.yaml", "log: ", "log: [", ["lunches.yaml", "not YAML"]),
    "missing column": ("lunches.yaml", "poi: dish", "poi: dihs", ["lunches.csv", "'dihs'", "did you mean 'dish'"]),
    "missing file": ("lunches.yaml", "dishes.csv", "plates.csv", ["plates.csv", "no such file"]),
    "template column": ("lunches.yaml", "{price} euros", "{prize} euros", ["pois.text", "'prize'", "'price'"]),
    "format": ("lunches.yaml", "{price} euros", "{price:.2f} euros", ["pois.text", "{price:...}", "write {price}"]),
    "unknown zone": ("lunches.yaml", "Europe/Helsinki", "Europe/Helsinky", ["lunches.yaml", "Europe/Helsinky"]),
    "half a split": ("lunches.yaml", ", end: 2024-03-06", "", ["split", "end"]),
    "clashing name": ("lunches.yaml", "name: rainfall", "name: position", ["position", "rename"]),
    "no time": ("lunches.csv", "2024-03-02 12:05:00", "yesterday", ["lunches.csv", "'shown_at'", "row 4", "yesterday"]),
    "empty time": ("lunches.csv", "2024-03-02 12:05:00", "", ["lunches.csv", "'shown_at'", "data row 4", "empty"]),
    "future": ("lunches.csv", "2024-03-04 12", "2034-03-04 12", ["lunches.csv", "shown_at", "row 7", "2034", "future"]),
    "after the end": ("lunches.csv", "2024-03-05", "2024-03-07", ["'shown_at'", "data row 8", "2024-03-07", "end"]),
    "negative duration": ("lunches.csv", ",25", ",-25", ["lunches.csv", "'seconds'", "data row 3", "-25", "negative"]),
    "label": ("lunches.csv", "0,5,yes", "0,five,yes", ["lunches.csv", "'stars'", "data row 1", "'five'"]),
    "order without click": ("lunches.csv", "1,2,no", "1,2,yes", ["lunches.csv", "'paid'", "data row 2", "'yes'"]),
    "position": ("lunches.csv", "12:10:00,0", "12:10:00,0.5", ["lunches.csv", "'rank'", "data row 3", "'0.5'"]),
    "no user": ("lunches.csv", "cid,cake", ",cake", ["lunches.csv", "'guest'", "data row 5", "empty"]),
    "unknown POI": ("lunches.csv", "cid,cake", "cid,kake", ["lunches.csv", "'dish'", "data row 5", "'kake'", "dishes"]),
    "repeated key": ("dishes.csv", "salad,C", "soup,C", ["dishes.csv", "'id'", "data row 2", "'soup'", "unique"]),
    "word coordinate": ("dishes.csv", "24.950", "east", ["dishes.csv", "'lon'", "data row 3", "'east'", "number"]),
    "off the globe": ("dishes.csv", "60.171", "160.171", ["dishes.csv", "'lat'", "data row 2", "160.171", "90"]),
    "separator": ("lunches.yaml", "key: id", "scenarios: {column: id, separator: ''}", ["pois.scenarios", "separator"]),
    "rule": ("lunches.yaml", "key: id", "scenarios: {colunm: id}", ["pois.scenarios.colunm", "did you mean 'column'"]),
    "ragged": ("dishes.csv", "24.950", "24.950,1,2", ["dishes.csv", "not a readable table"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_and_writes_nothing(example: Path, tmp_path: Path, name: str) -> None:
    file, old, new, wanted = REFUSALS[name]
    edit(tmp_path / file, old, new)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as error:
        load(example).write(tmp_path / "sources")
    for words in wanted:
        assert words in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def pages(example: Path, values: list[str], rule: str) -> list[list[str] | None]:
    """Which scenarios may show soup, salad and cake where `dishes.csv` has these pages and the mapping this rule."""
    dishes = example.parent / "dishes.csv"
    added = ["pages", *values]
    rows = zip(dishes.read_text().splitlines(), added, strict=True)
    dishes.write_text("".join(f"{row},{more}\n" for row, more in rows))
    edit(example, "  category: kind", f"  category: kind\n  scenarios: {rule}")
    dataset = load(example)
    dataset.write(example.parent / "sources")
    assert dataset.schema.shown_in
    return frame(dataset, "pois")["shown_in"].to_list()


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (["home|lunch", "", "lunch"], "pages"),
        (["home|lunch", '""', "lunch"], "{column: pages}"),  # which is no null to the reader
        (["home; lunch", "", "lunch"], "{column: pages, separator: '; '}"),
    ],
)
def test_a_poi_names_the_scenarios_that_may_show_it(example: Path, values: list[str], rule: str) -> None:
    assert pages(example, values, rule) == [["home", "lunch"], None, ["lunch"]]


def test_a_log_without_the_key_says_nothing_of_who_may_show_a_poi(example: Path) -> None:
    dataset = load(example)
    assert not dataset.schema.shown_in and "shown_in" not in dataset.tables["pois"].column_names


def test_a_scenario_that_the_log_lacks_may_be_told(example: Path) -> None:
    edit(example, "scenarios:\n", "scenarios:\n  party: {name: Party, text: What a party needs.}\n")
    assert pages(example, ["party", "", ""], "pages") == [["party"], None, None]


@pytest.mark.parametrize("bad", ["home|lunsh", "home|", " home", "home,lunch"])
def test_a_scenario_that_is_none_is_named_by_its_place(example: Path, bad: str) -> None:
    word = bad.split("|")[-1]
    told = rf"dishes\.csv, column 'pages', data row 2: '{re.escape(bad)}' names the unknown scenario '{word}'; add it"
    with pytest.raises(DataError, match=told):
        pages(example, ["home", f'"{bad}"', "lunch"], "pages")
    assert not (example.parent / "sources").exists()


def test_lists_of_scenarios_may_be_empty_and_keep_their_rows(example: Path) -> None:
    """Of a list no entry is no scenario; and the row that is named is that of the file, where others are left out."""
    dishes = pl.DataFrame(
        {
            "id": ["unseen", "salad", "soup", "cake"],
            "title": ["?", "Caesar salad", "Salmon soup", "Cake"],
            "kind": ["?", "cold", "warm", "pastry"],
            "price": [1, 2, 3, 4],
            "lat": [None, 60.171, 60.17, 60.168],
            "lon": [None, 24.945, 24.94, 24.95],
            "pages": [["nowhere"], None, [], ["lunch"]],
        }
    )
    dishes.write_parquet(example.parent / "dishes.parquet")
    edit(example, "file: dishes.csv", "file: dishes.parquet\n  which: shown\n  scenarios: pages")
    pois = frame(load(example), "pois")
    assert dict(pois.select("poi_id", "shown_in").iter_rows()) == {"salad": None, "soup": [], "cake": ["lunch"]}
    wrong = dishes.with_columns(pages=pl.Series([["nowhere"], None, [], ["lunch", "diner"]]))
    wrong.write_parquet(example.parent / "dishes.parquet")
    told = r"'pages', data row 4: \['lunch', 'diner'\] names the unknown scenario 'diner'"
    with pytest.raises(DataError, match=told):
        load(example)


def test_a_bad_value_of_a_shown_poi_keeps_its_row_where_rows_before_it_are_left_out(example: Path) -> None:
    dishes = example.parent / "dishes.csv"
    edit(dishes, "soup,", "unseen,Nobody's soup,warm lunch,1,60.1,24.9\nsoup,")
    edit(dishes, "24.950", "east")
    edit(example, "key: id", "key: id\n  which: shown")
    with pytest.raises(DataError, match=r"dishes\.csv, column 'lon', data row 4: 'east' is not a number"):
        load(example)


def test_a_bad_value_of_a_poi_that_its_table_does_not_tell_of_is_named(example: Path) -> None:
    edit(example.parent / "dishes.csv", "cake,", "unseen,")
    edit(example, "key: id", "key: id\n  which: shown\n  scenarios: id")
    for told in ("soup", "salad"):
        edit(example, "\nscenarios:\n", f"\nscenarios:\n  {told}: {{name: Said, text: Said.}}\n")
    with pytest.raises(DataError, match=r"dishes\.csv, column 'id', .*'cake' names the unknown scenario 'cake'"):
        load(example)


def test_number_that_is_no_label_is_refused(example: Path) -> None:
    edit(example, "{column: stars, at_least: 4}", "stars")
    with pytest.raises(DataError, match=r"'stars', data row 1: '5' is neither 0 nor 1; add at_least"):
        load(example)


def test_equal_rows_are_dropped_on_request(example: Path, tmp_path: Path) -> None:
    log = tmp_path / "lunches.csv"
    log.write_text(log.read_text() + "bob,cake,2024-03-05 16:20:00,0,4,no,home,sun,0.0,30\n")
    assert frame(load(example), "impressions").height == 9
    example.write_text(example.read_text() + "duplicates: drop\n")
    assert frame(load(example), "impressions").height == 8


def test_bands_come_from_history_alone(example: Path) -> None:
    """History has rain 4, 4 and 0: its median is 4, whatever the later rows say."""
    edit(example, "borders: [0.1, 5]", "bands: 2")
    assert frame(load(example), "impressions")["rainfall"].unique().sort().to_list() == ["4 or more", "below 4"]


def test_missing_numbers_have_no_band(example: Path, tmp_path: Path) -> None:
    edit(tmp_path / "lunches.csv", "rain,4.0", "rain,")
    assert frame(load(example), "impressions")["rainfall"].to_list()[:3] == [None, "0.1 to 5", "below 0.1"]


def test_numeric_field_feeds_a_declared_feature(example: Path) -> None:
    edit(example, "name: rainfall, borders: [0.1, 5]", "name: temperature, numeric: true")
    dataset = load(example)
    assert frame(dataset, "impressions")["temperature"].to_list()[:2] == [4.0, 4.0]
    assert dataset.schema.scene_fields == ("weather",)


def test_more_statistics_are_kept_where_the_file_says_so(example: Path) -> None:
    assert load(example).schema.statistics == columns.USUAL_STATISTICS
    edit(example, "timezone:", "statistics: [user_poi_daypart]\nlike_minded: true\nwindow_days: [7, 90]\ntimezone:")
    schema = load(example).schema
    assert schema.statistics == (*columns.USUAL_STATISTICS, "user_poi_daypart") and schema.window_days == (7, 90)
    assert schema.like_minded
    edit(example, "user_poi_daypart", "user_mood")
    with pytest.raises(DataError, match="user_mood"):
        load(example)


def test_parquet_and_joint_keys_and_derived_pois(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "a": [1.0, 1.0, 2.0, 2.0],
            "b": ["x", "y", "x", "x"],
            "item": [7, 8, 7, 9],
            "genre": ["old", "odd", "new", None],
            "ms": [1_700_000_000_000 + 1000 * i for i in range(4)],
            "clicked": [True, False, False, True],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    file = tmp_path / "m.yaml"
    file.write_text(
        "log: log.parquet\ntime: {unit: milliseconds}\n"
        "columns: {user: [a, b], poi: item, time: ms, click: clicked, request: b}\npois: {category: genre}\n"
    )
    dataset = load(file)
    dataset.write(tmp_path / "sources")
    assert frame(dataset, "impressions")["user_id"].to_list() == ["1|x", "1|y", "2|x", "2|x"]
    assert frame(dataset, "impressions")["event_timestamp"][0] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert frame(dataset, "impressions")["request_id"].to_list() == ["x", "y", "x", "x"]
    pois = frame(dataset, "pois").sort("poi_id")
    assert pois["category"].to_list() == ["old", "odd", "unknown"], "the first row of a POI tells its category"
    assert dataset.schema.dataset == "m"
    assert frame(dataset, "scenarios")["scenario_id"].to_list() == ["all"]


def test_an_id_is_one_id_in_files_that_hold_it_as_different_types(tmp_path: Path) -> None:
    large = 2**53 + 1  # no float64 holds it
    (tmp_path / "first.csv").write_text(f"user,item,clicked,time\n1,7,1,1700000000\n2,{large},0,1700000001\n")
    rows = {"user": [1.0, 2.0], "item": [7, large], "clicked": [True, False], "time": [1_700_000_002, 1_700_000_003]}
    pl.DataFrame(rows).write_parquet(tmp_path / "second.parquet")
    pl.DataFrame(rows | {"item": [7.0, None]}).head(1).write_parquet(tmp_path / "third.parquet")
    file = tmp_path / "m.yaml"
    file.write_text(
        "log: [first.csv, second.parquet, third.parquet]\ntime: {unit: seconds}\n"
        "columns: {user: user, poi: item, time: time, click: clicked}\n"
    )
    dataset = load(file)
    rows_of = frame(dataset, "impressions")
    assert frame(dataset, "users")["user_id"].sort().to_list() == ["1", "2"]
    assert frame(dataset, "pois")["poi_id"].sort().to_list() == ["7", str(large)]
    assert rows_of["click"].to_list() == [1, 0, 1, 1, 0]
    file.write_text(file.read_text().replace("first.csv, ", ""))
    assert frame(load(file), "pois")["poi_id"].sort().to_list() == ["7", str(large)], "nor by way of a float"


def test_a_log_of_more_files_than_a_year_has_days(tmp_path: Path) -> None:
    for n in range(400):
        (tmp_path / f"{n:03}.csv").write_text(f"user,item,clicked,time\nu{n},p,1,{1_700_000_000 + n}\n")
    file = tmp_path / "m.yaml"
    files = ", ".join(f"{n:03}.csv" for n in range(400))
    file.write_text(
        f"log: [{files}]\ntime: {{unit: seconds}}\ncolumns: {{user: user, poi: item, time: time, click: clicked}}\n"
    )
    assert len(frame(load(file), "users")) == 400


def test_lists_of_several_files_are_left_as_they_are() -> None:
    empty, full = pl.DataFrame({"tags": [[]], "id": [1]}), pl.DataFrame({"tags": [["x", "y"]], "id": ["1"]})
    alike = tables._alike([empty, full])
    assert [frame.schema["tags"] for frame in alike] == [empty.schema["tags"], full.schema["tags"]]
    assert pl.concat(alike, how="diagonal_relaxed").to_dicts() == [
        {"tags": [], "id": "1"},
        {"tags": ["x", "y"], "id": "1"},
    ]


def test_times_of_several_files_keep_their_types(tmp_path: Path) -> None:
    moments = [datetime(2024, 1, day, 12, tzinfo=UTC) for day in (1, 2)]
    for name, dtype in (("a", pl.Datetime("ms", "UTC")), ("b", pl.Datetime("us", "UTC"))):
        pl.DataFrame({"user": ["u"] * 2, "item": ["p"] * 2, "time": pl.Series(moments, dtype=dtype)}).write_parquet(
            tmp_path / f"{name}.parquet"
        )
    file = tmp_path / "m.yaml"
    file.write_text("log: [a.parquet, b.parquet]\ncolumns: {user: user, poi: item, time: time, click: {constant: 1}}\n")
    assert frame(load(file), "impressions")["event_timestamp"].unique().sort().to_list() == moments


def test_empty_log_is_refused(example: Path, tmp_path: Path) -> None:
    log = tmp_path / "lunches.csv"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"lunches\.csv: has no rows"):
        load(example)


def test_table_of_an_installed_package(tmp_path: Path) -> None:
    """Feast ships a taxi log for its own tests: customers rate nothing, but a ride succeeds or not."""
    rides = create_orders_df([1, 2, 3], [11, 12], datetime(2024, 1, 1), datetime(2024, 1, 8), order_count=40)
    rides.to_parquet(tmp_path / "rides.parquet")
    file = tmp_path / "rides.yaml"
    file.write_text(
        "log: rides.parquet\ntimezone: America/New_York\n"
        "columns: {user: customer_id, poi: driver_id, time: event_timestamp, click: order_is_success,\n"
        "  request: order_id}\n"
    )
    dataset = load(file)
    dataset.write(tmp_path / "sources")
    assert frame(dataset, "impressions")["click"].sum() == rides["order_is_success"].sum()
    assert sorted(frame(dataset, "pois")["poi_id"]) == ["11", "12"]
