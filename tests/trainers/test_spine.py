"""Entity tables of one's own: what is taken, what is filled in, what is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import TIME, RequestField, Schema, Split
from trainers.spine import SpineError, read_entities

START = datetime(2015, 3, 1, tzinfo=UTC)
SCHEMA = Schema(
    dataset="tiny",
    timezone="UTC",
    split=Split(train=START, valid=START, test=START, end=START),
    request_fields=(RequestField(name="weather", dtype="string"), RequestField(name="temperature", dtype="float")),
)
CSV = """user_id,poi_id,scenario_id,event_timestamp,temperature
u1,p1,home,2015-03-01T10:00:00,4
u2,p1,home,2015-03-01T11:00:00+02:00,
"""


def test_a_csv_becomes_impressions_without_what_it_does_not_say(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV.replace("+02:00", ""))
    table = read_entities(path, SCHEMA)
    assert table[columns.ROW_ID].to_pylist() == [0, 1]
    assert table[columns.EVENT_TIMESTAMP].type == TIME
    assert table[columns.EVENT_TIMESTAMP][0].as_py() == datetime(2015, 3, 1, 10, tzinfo=UTC)
    assert table["temperature"].to_pylist() == [4.0, None] and table["weather"].to_pylist() == [None, None]
    assert columns.CLICK not in table.column_names


def test_rows_come_in_the_order_of_their_ids(tmp_path):
    path = tmp_path / "rows.parquet"
    times = pa.array([START, START], pa.timestamp("ns", "Europe/Helsinki"))
    rows = {columns.ROW_ID: [7, 3], columns.USER_ID: ["a", "b"], columns.POI_ID: ["p", "p"]}
    pq.write_table(pa.table({**rows, columns.SCENARIO_ID: ["s", "s"], columns.EVENT_TIMESTAMP: times}), path)
    assert read_entities(path, SCHEMA)[columns.USER_ID].to_pylist() == ["b", "a"]


def test_ids_in_a_csv_are_the_words_that_stand_there(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV.replace("+02:00", "").replace("u1,p1,home", "007,1.50,1e3").replace("u2,p1", "012,p1"))
    table = read_entities(path, SCHEMA)
    assert table[columns.USER_ID].to_pylist() == ["007", "012"]
    assert table[columns.POI_ID].to_pylist() == ["1.50", "p1"]
    assert table[columns.SCENARIO_ID].to_pylist() == ["1e3", "home"]


def test_columns_that_are_none_of_an_impression_are_left_out(tmp_path):
    """A feature's own name, say, in a file that a pull wrote."""
    path = tmp_path / "rows.csv"
    path.write_text(CSV.replace("+02:00", "").replace("temperature", "category_key"))
    assert "category_key" not in read_entities(path, SCHEMA).column_names


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.json", "{}", "neither .parquet nor .csv"),
        ("rows.csv", CSV.replace("poi_id", "place"), r"no columns \['poi_id'\]; it has user_id, place"),
        ("rows.csv", CSV.replace("2015-03-01T10:00:00", "yesterday"), "event_timestamp is string"),
        ("rows.csv", CSV.replace("+02:00,", ",warm").replace("+02:00", ""), "temperature is string, not double"),
        ("rows.csv", CSV.replace("+02:00", "").replace("2015-03-01T11:00:00", ""), "row 1 has no event_timestamp"),
        ("rows.csv", CSV.replace("+02:00", "").replace("u2,", ","), "row 1 has no user_id"),
        (
            "rows.csv",
            CSV.replace("+02:00", "").replace("temperature", "row_id").replace(",\n", ",4\n"),
            "row_id 4 .*once",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_file_column_and_row(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SpineError, match=said):
        read_entities(path, SCHEMA)
