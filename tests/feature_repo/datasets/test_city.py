"""The city as a data set: valid tables, the same bytes for the same seed, honest time, calibrated truth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns, hours, scenes
from feature_repo.datasets import city
from feature_repo.datasets.city import CityConfig, Variant
from feature_repo.datasets.schema import FAVOURITES, ORACLE, Dataset, conform

TINY = CityConfig(users=150, requests_per_user_day=0.12)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return city.build(TINY)


@pytest.fixture(scope="module")
def impressions(dataset: Dataset) -> pd.DataFrame:
    return dataset.tables["impressions"].to_pandas()


def test_writes_a_valid_dataset(dataset: Dataset, tmp_path: Path) -> None:
    dataset.write(tmp_path / "sources")
    written = pq.read_table(tmp_path / "sources" / "oracle.parquet")
    assert written.schema.equals(ORACLE)
    assert written[columns.ROW_ID].equals(pq.read_table(tmp_path / "sources" / "impressions.parquet")[columns.ROW_ID])


def test_every_user_has_a_favourite_kind_of_place_that_suits_the_diet(dataset: Dataset, tmp_path: Path) -> None:
    dataset.write(tmp_path / "sources")
    favourites = pq.read_table(tmp_path / "sources" / "favourites.parquet")
    assert favourites.schema.equals(FAVOURITES)
    assert favourites[columns.USER_ID].equals(dataset.tables["users"][columns.USER_ID])
    assert set(favourites[columns.CATEGORY].to_pylist()) <= set(dataset.tables["pois"][columns.CATEGORY].to_pylist())
    users = dataset.tables["users"].to_pandas().merge(favourites.to_pandas(), on=columns.USER_ID)
    green = users[columns.CATEGORY].isin(["vegetarian restaurant", "salad bar"]).groupby(users["diet"]).mean()
    assert green["vegetarian"] > 0.5 > green["sweet tooth"]


def test_one_seed_gives_the_same_tables_and_another_a_different_sample_of_the_same_places(dataset: Dataset) -> None:
    again, other = city.build(TINY), city.build(replace(TINY, seed=1))
    for name, table in dataset.tables.items():
        assert table.equals(again.tables[name]), name
    assert other.tables["pois"].equals(dataset.tables["pois"])
    assert not other.tables["users"].equals(dataset.tables["users"])
    assert not other.tables["impressions"].equals(dataset.tables["impressions"])


def test_every_scene_feature_applies_and_the_long_tails_are_long(dataset: Dataset, impressions: pd.DataFrame) -> None:
    assert scenes.features_of(dataset.schema) == scenes.FEATURES
    assert impressions["landmark"].nunique() > 250
    assert impressions["occasion"].nunique() > 45
    assert impressions["occasion"].isna().mean() > 0.2


def test_requests_have_ten_distinct_places_at_ten_positions(impressions: pd.DataFrame) -> None:
    by_request = impressions.groupby(columns.REQUEST_ID)
    assert (by_request[columns.POI_ID].nunique() == TINY.candidates).all()
    assert (by_request[columns.POSITION].apply(lambda p: sorted(p) == list(range(10)))).all()
    assert (by_request[columns.EVENT_TIMESTAMP].nunique() == 1).all()


def test_rows_stand_in_time_order_and_inside_the_local_days(impressions: pd.DataFrame) -> None:
    times = impressions[columns.EVENT_TIMESTAMP]
    assert times.is_monotonic_increasing
    local = times.dt.tz_convert("Europe/Helsinki").dt.date
    assert (local.min(), local.max()) == (date(2012, 3, 12), date(2012, 5, 6))
    spring_forward = times.dt.tz_convert("Europe/Helsinki")[local == date(2012, 3, 25)]
    assert len(spring_forward) > 0
    assert not (spring_forward.dt.hour == 3).any(), "the hour that daylight saving skips does not exist"


def test_outcomes_are_known_before_the_users_next_request(impressions: pd.DataFrame) -> None:
    requests = impressions.groupby([columns.USER_ID, columns.EVENT_TIMESTAMP])[columns.OUTCOME_TIMESTAMP].max()
    frame = requests.reset_index().sort_values([columns.USER_ID, columns.EVENT_TIMESTAMP])
    following = frame.groupby(columns.USER_ID)[columns.EVENT_TIMESTAMP].shift(-1)
    assert (frame[columns.OUTCOME_TIMESTAMP] < following)[following.notna()].all()


def test_nobody_acts_and_nothing_is_shown_before_it_exists(dataset: Dataset, impressions: pd.DataFrame) -> None:
    late = 0
    for table, key in (("pois", columns.POI_ID), ("users", columns.USER_ID)):
        created = dataset.tables[table].to_pandas().set_index(key)[columns.CREATED_TIMESTAMP]
        assert (impressions[columns.EVENT_TIMESTAMP] >= impressions[key].map(created)).all(), table
        late += int((created > created.min()).sum())
    assert late > 50
    opened = dataset.tables["pois"].to_pandas()[columns.CREATED_TIMESTAMP]
    assert (opened >= pd.Timestamp(dataset.schema.split.valid)).sum() >= 5, "cold places in valid and test"


def test_split_of_the_default_period() -> None:
    split = CityConfig().split()
    assert split.train == datetime(2012, 4, 4, 21, tzinfo=UTC)
    assert split.valid == datetime(2012, 4, 25, 21, tzinfo=UTC)
    assert split.test == datetime(2012, 4, 29, 21, tzinfo=UTC)
    assert split.end == datetime(2012, 5, 6, 21, tzinfo=UTC)


def test_labels_are_drawn_from_the_true_probabilities() -> None:
    """Mean label minus mean p, in units of its standard error, overall and in ten bins of p."""
    dataset = city.build(CityConfig(users=400, requests_per_user_day=0.2))
    rows = dataset.tables["impressions"].to_pandas().merge(dataset.tables["oracle"].to_pandas(), on=columns.ROW_ID)
    for label, p in ((columns.CLICK, "p_click"), (columns.ORDER, "p_order")):
        for _, part in [("all", rows), *rows.groupby(pd.qcut(rows[p], 10), observed=True)]:
            error = np.sqrt((part[p] * (1 - part[p])).sum())
            assert abs((part[label] - part[p]).sum()) < 4 * error
    assert (rows["p_order"] < rows["p_click"]).all()
    assert 0.10 < rows[columns.CLICK].mean() < 0.20
    assert 0.20 < rows[columns.ORDER].sum() / rows[columns.CLICK].sum() < 0.35


def test_closed_places_get_far_fewer_orders(dataset: Dataset, impressions: pd.DataFrame) -> None:
    weeks = dataset.tables["pois"].to_pandas().set_index(columns.POI_ID)[columns.OPEN_HOURS]
    local = impressions[columns.EVENT_TIMESTAMP].dt.tz_convert("Europe/Helsinki")
    hour = (local.dt.dayofweek * 24 + local.dt.hour).to_numpy()
    state = hours.is_open([w or None for w in impressions[columns.POI_ID].map(weeks)], hour)
    truth = dataset.tables["oracle"]["p_order"].to_numpy()
    assert truth[state == 0].mean() < 0.15 * truth[state == 1].mean()


def test_more_places_than_the_real_ones_get_their_own_ids_near_the_others() -> None:
    pois = city.build(replace(TINY, users=20, pois=1000)).tables["pois"].to_pandas()
    assert pois[columns.POI_ID].nunique() == len(pois) == 1000
    real = city.build(replace(TINY, users=20)).tables["pois"].to_pandas()
    assert set(real[columns.POI_ID]) < set(pois[columns.POI_ID])
    assert pois[columns.POI_LATITUDE].between(60.14, 60.21).all()


def test_a_place_is_the_same_in_cities_of_every_size() -> None:
    small, large = (city.build(replace(TINY, users=20, pois=n)).tables["pois"].to_pandas() for n in (100, 600))
    pd.testing.assert_frame_equal(small, large.head(100))


@pytest.mark.parametrize("variant", [Variant(semantics=False), Variant(concepts=3)])
def test_variants_are_datasets_too(variant: Variant) -> None:
    dataset = city.build(replace(TINY, users=40, variant=variant))
    for name, table in dataset.tables.items():
        conform(name, table, dataset.schema)


def test_too_few_places_for_a_slate_are_named() -> None:
    with pytest.raises(ValueError, match=r"a slate of 10 places from .* use fewer candidates or more pois"):
        city.build(replace(TINY, users=20, pois=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"days": 6}, "days must be at least 7, got 6"),
        ({"requests_per_user_day": 0.0}, "must be positive, got 0.0"),
        ({"start": date(2013, 1, 1)}, "leaves 2012"),
        ({"days": 300}, "leaves 2012"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_progress_comes_to_its_end() -> None:
    seen: list[tuple[str, int, int]] = []
    city.build(replace(TINY, users=30), lambda stage, done, total: seen.append((stage, done, total)))
    assert seen[-1][1] == seen[-1][2]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_texts_say_what_the_columns_say(dataset: Dataset) -> None:
    for row in dataset.tables["pois"].slice(0, 50).to_pylist():
        for column in (columns.NAME, columns.CATEGORY, columns.SPECIALTY, "street"):
            assert row[column] in row[columns.TEXT]
    texts = dataset.tables["users"][columns.TEXT]
    assert isinstance(texts, pa.ChunkedArray)
    assert all(text.startswith("A person ") and text.endswith(".") for text in texts.to_pylist())
