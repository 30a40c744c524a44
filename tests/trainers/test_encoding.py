from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.hours import hour_of_week
from feature_repo.scenes import EVENT_TIME_US
from trainers.encoding import RATE_PRIOR_COUNT, Encoding, Scaler, Vocabulary, derive_numbers, log_hours, standardised


def test_vocabulary_is_alphabetical_and_zero_is_unknown() -> None:
    vocabulary = Vocabulary.fit(pa.chunked_array([["b", None, "a"], ["b", "c"]]))
    assert vocabulary.values == ("a", "b", "c") and len(vocabulary) == 4
    assert vocabulary.ids(pa.array(["c", "x", None, "a"])).tolist() == [3, 0, 0, 1]
    assert Vocabulary.fit(pa.chunked_array([["b", "a", "b"]]), minimum_count=2).values == ("b",)


def test_scaler_puts_missing_at_the_mean() -> None:
    scaler = Scaler.fit(np.array([1.0, 3.0, np.nan]))
    assert scaler == Scaler(2.0, 1.0, 1.0, 3.0)
    assert Scaler.fit(np.array([np.nan])) == Scaler(0.0, 1.0, 0.0, 0.0)
    scalers = {"varies": scaler, "constant": Scaler.fit(np.array([5.0, 5.0])), "shared": Scaler(1.0, 2.0, 0.0, 9.0)}
    numbers = {"varies": np.array([2.5, np.nan]), "constant": np.array([5.0, 5.0]), "shared": np.array([9.0])}
    assert standardised(numbers, scalers, 2).tolist() == [[0.5, 0.0, 4.0], [0.0, 0.0, 4.0]]


def test_what_training_never_came_near_is_taken_as_the_end_of_its_range() -> None:
    scalers = {"varies": Scaler.fit(np.array([1.0, 3.0])), "constant": Scaler.fit(np.array([5.0, 5.0]))}
    numbers = {"varies": np.array([300.0, -np.inf]), "constant": np.array([6.0, 1e9])}
    assert standardised(numbers, scalers, 2).tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_json_keeps_every_bit(pull: pa.Table, pull_schema: Schema) -> None:
    encoding = Encoding.fit(pull, pull_schema)
    again = Encoding.from_json(encoding.to_json())
    assert again == encoding and again.to_json() == encoding.to_json()


def test_fit_reads_the_schema(pull: pa.Table, pull_schema: Schema) -> None:
    encoding = Encoding.fit(pull, pull_schema)
    assert encoding.user_columns == (columns.SCENARIO_ID, columns.USER_ID, "age_band")
    assert encoding.poi_columns == (columns.POI_ID, columns.CATEGORY, columns.SPECIALTY, "price_level")
    assert encoding.text_spaces == ("poi_text",) and "weather" in encoding.scene_features
    assert encoding.cardinalities([columns.SCENARIO_ID, "age_band"]) == (3, 2)
    clicks, orders = (sum(pull[label].to_pylist()) for label in columns.LABELS)
    assert encoding.rates == pytest.approx(((clicks + 1) / (len(pull) + 2), (orders + 1) / (clicks + 2)))


def test_numbers_by_hand(pull: pa.Table) -> None:
    row = pull.slice(1, 1)
    numbers = derive_numbers(row, "Europe/Helsinki", (0.2, 0.5))
    shown, clicked, ordered = (row[columns.statistic("poi", c, 7)][0].as_py() for c in columns.COUNTS)
    assert numbers["poi_log_impressions_7d"][0] == pytest.approx(np.log1p(shown))
    rate = (clicked + RATE_PRIOR_COUNT * 0.2) / (shown + RATE_PRIOR_COUNT)
    assert numbers["poi_click_rate_7d"][0] == pytest.approx(rate)
    assert numbers["poi_order_rate_7d"][0] == pytest.approx(
        (ordered + RATE_PRIOR_COUNT * 0.5) / (clicked + RATE_PRIOR_COUNT)
    )


def test_whatever_statistics_a_table_holds_become_numbers(pull: pa.Table) -> None:
    kept = {name for name in derive_numbers(pull, "UTC", (0.2, 0.5)) if name.endswith("_log_clicks_28d")}
    assert kept == {f"{owner}_log_clicks_28d" for owner in columns.STATISTICS}
    longer = pull
    for count in columns.COUNTS:
        longer = longer.append_column(f"user_poi_daypart_{count}_365d", pa.array([3] * len(pull)))
    assert derive_numbers(longer, "UTC", (0.2, 0.5))["user_poi_daypart_log_clicks_365d"][0] == np.log1p(3)
    lacking = pull.drop_columns([n for n in pull.column_names if n.startswith("user_specialty_")])
    assert not any(name.startswith("user_specialty") for name in derive_numbers(lacking, "UTC", (0.2, 0.5)))
    with pytest.raises(KeyError, match="user_specialty_orders_7d"):
        derive_numbers(pull.drop_columns(["user_specialty_orders_7d"]), "UTC", (0.2, 0.5))


def test_distance_and_openness_are_unknown_where_the_poi_says_nothing(pull: pa.Table) -> None:
    numbers = derive_numbers(pull, "Europe/Helsinki", (0.2, 0.5))
    places, hours = pull[columns.POI_LONGITUDE].to_pylist(), pull[columns.OPEN_HOURS].to_pylist()
    assert np.isnan(numbers["log_distance_km"]).tolist() == [p is None for p in places]
    assert np.isnan(numbers["open_now"]).tolist() == [h is None for h in hours]
    known = [
        (d, lat)
        for d, lat, p in zip(numbers["log_distance_km"], pull[columns.POI_LATITUDE].to_pylist(), places, strict=True)
        if p is not None
    ]
    assert known[0][0] == pytest.approx(np.log1p((known[0][1] - 60.17) * 111.195), rel=1e-3)


def test_hours_since_this_poi_was_clicked(pull: pa.Table) -> None:
    numbers = derive_numbers(pull, "Europe/Helsinki", (0.2, 0.5))["log_hours_since_poi"]
    found = 0
    for row in range(300):
        poi, pois = pull[columns.POI_ID][row].as_py(), pull[columns.RECENT_POIS][row].as_py()
        if pois and poi in pois:
            at = pull[columns.RECENT_TIMES][row].as_py()[pois.index(poi)]
            hours = (pull[EVENT_TIME_US][row].as_py() - at) / 3.6e9
            assert numbers[row] == pytest.approx(np.log1p(hours))
            found += 1
        else:
            assert np.isnan(numbers[row])
    assert found > 20


def test_the_week_turns_by_the_local_clock() -> None:
    sunday_evening = datetime(2024, 3, 31, 21, 30, tzinfo=UTC)  # Monday 00:30 in Helsinki, summer time since that day
    times = np.array([sunday_evening.timestamp() * 1e6, datetime(2024, 3, 30, 21, 30, tzinfo=UTC).timestamp() * 1e6])
    assert hour_of_week(times.astype(np.int64), "Europe/Helsinki").tolist() == [0, 5 * 24 + 23]


def test_a_negative_age_counts_as_now() -> None:
    assert log_hours(np.array([-5.0, 0.0, 3.6e9])).tolist() == pytest.approx([0.0, 0.0, np.log(2.0)])
