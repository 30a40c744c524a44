"""Foursquare: sampled lists follow their written law, and no request knows its own answer."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.datasets import foursquare
from feature_repo.datasets.places import request_places
from feature_repo.datasets.schema import Dataset

HEADER = [
    "user_id",
    "venue_id",
    "name",
    "category_path",
    "tsmc_category",
    "locality",
    "latitude",
    "longitude",
    "local_time",
    "multiplicity",
    "precipitation",
    "temp_max",
    "temp_min",
    "wind",
    "weather",
]
KINDS = ["Dining > Cafe > Coffee Shop", "Dining > Bar", "Dining > Restaurant > Thai Restaurant"]


def checkin(user: int, venue: int, moment: datetime) -> list[object]:
    """A venue's place, kind and name follow from its number: number n lies n * 0.01 degrees north."""
    place = ["Queens" if venue % 2 else None, 40.7 + venue / 100, -74.0]
    weather = [0.0, 20.0, 10.0, 1.0, "rain" if moment.day % 2 else "sun"]
    return [
        user,
        f"v{venue}",
        f"Venue {venue}",
        KINDS[venue % 3],
        "x",
        *place,
        f"{moment:%Y-%m-%d %H:%M:%S}",
        1,
        *weather,
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five months, four users, nine venues; every venue is visited at noon, so all are open then."""
    rng = np.random.default_rng(0)
    start = datetime(2012, 4, 1, 12)
    rows = [
        checkin(u, int(rng.integers(9)), start + timedelta(days=d, minutes=u)) for d in range(150) for u in range(4)
    ]
    rows.append(checkin(9, 3, datetime(2012, 11, 4, 1, 30)))  # the hour that the clocks repeat
    pl.DataFrame(rows, schema=HEADER, orient="row").write_csv(tmp_path / "checkins_2012.csv")
    return tmp_path


def load(folder: Path, seed: int = 0, negatives: int = 5) -> Dataset:
    return foursquare.load(foursquare.FoursquareConfig(folder=folder, negatives=negatives, seed=seed))


def frame(dataset: Dataset, table: str) -> pl.DataFrame:
    read = pl.from_arrow(dataset.tables[table])
    assert isinstance(read, pl.DataFrame)
    return read


def test_every_request_is_one_checkin_and_its_negatives(folder: Path, tmp_path: Path) -> None:
    dataset = load(folder)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows["request_id"].n_unique() == 601
    assert rows["click"].sum() == 601
    lists = rows.group_by("request_id").agg(
        pl.col("poi_id").n_unique().alias("venues"), pl.len(), pl.col("position").sort(), pl.col("user_id").n_unique()
    )
    assert (lists["venues"] == lists["len"]).all(), "no venue twice: the check-in is never its own negative"
    assert all(positions.to_list() == list(range(len(positions))) for positions in lists["position"])
    assert rows["order"].sum() == 0
    assert "sampled" in dataset.schema.notes and "order" in dataset.schema.notes
    assert set(rows["poi_id"]) <= set(frame(dataset, "pois")["poi_id"])


def test_seed_draws_the_sample(folder: Path) -> None:
    assert load(folder).tables == load(folder).tables
    assert load(folder, seed=1).tables["impressions"] != load(folder).tables["impressions"]


def test_columns(folder: Path) -> None:
    dataset = load(folder)
    rows = frame(dataset, "impressions")
    repeated = rows.filter(user_id="9", click=1)
    assert repeated["event_timestamp"].item() == datetime(2012, 11, 4, 5, 30, tzinfo=UTC), "the first of the two"
    assert repeated["latitude"].item() is None, "nothing is known of a user's first check-in"
    noon = rows.filter(pl.col("event_timestamp") == datetime(2012, 4, 1, 16, tzinfo=UTC))
    assert noon["temperature"].unique().to_list() == [18.5], "10 + 10 * (1 + cos(-3/12 pi)) / 2"
    assert noon["weather"].unique().to_list() == ["rain"]
    venue = frame(dataset, "pois").filter(poi_id="v3")
    assert venue["category"].item() == "Cafe" and venue["specialty"].item() == "Coffee Shop"
    assert venue["text"].item() == "Venue 3: Coffee Shop (Cafe) in Queens."
    assert frame(dataset, "pois").filter(poi_id="v4")["text"].item() == "Venue 4: Bar (Bar)."


def test_request_places_do_not_depend_on_the_answer(folder: Path) -> None:
    """Move every venue of one user's later check-ins: the places up to then, and of that moment, stay the same."""
    before = pl.read_csv(folder / "checkins_2012.csv", infer_schema=False)
    asked = frame(load(folder), "impressions").filter(user_id="2", click=1)
    last = before.filter(user_id="2").sort("local_time")["local_time"][-1]
    is_last = (pl.col("user_id") == "2") & (pl.col("local_time") == last)
    moved = before.with_columns(
        venue_id=pl.when(is_last).then(pl.lit("far")).otherwise("venue_id"),
        latitude=pl.when(is_last).then(pl.lit("41.9")).otherwise("latitude"),
    )
    moved.write_csv(folder / "checkins_2012.csv")
    again = frame(load(folder), "impressions").filter(user_id="2", click=1)
    assert again["poi_id"][-1] == "far"
    for column in ("latitude", "longitude", "landmark"):
        assert again[column].to_list() == asked[column].to_list()


def test_place_by_hand() -> None:
    """Recent check-in, else the most visited area; check-ins of one minute do not see each other."""
    start = datetime(2012, 4, 1, 12, tzinfo=UTC)
    visits = [  # hours after the start, latitude, locality
        (0, 40.701, "A"),
        (0, 40.90, "B"),
        (2, 40.703, "A"),
        (30, 40.90, "B"),
        (31, 40.90, "B"),
    ]
    log = pl.DataFrame(
        {
            "user_id": ["u"] * 5,
            "event_timestamp": [start + timedelta(hours=h) for h, _, _ in visits],
            "latitude": [latitude for _, latitude, _ in visits],
            "longitude": [-74.0] * 5,
            "locality": [locality for _, _, locality in visits],
        }
    )
    places = request_places(log, timedelta(hours=12))
    assert places["latitude"].to_list()[:3] == [None, None, 40.90], "the last check-in, two hours ago"
    assert places["latitude"][3] == pytest.approx(40.702), "the middle of the area with two check-ins"
    assert places["landmark"].to_list() == [None, None, "B", "A", "B"]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 15), st.integers(0, 10_000))
def test_sampled_lists(venues: int, negatives: int, seed: int) -> None:
    """Never the chosen venue, never a closed one, never twice, as many as asked where that many are open."""
    rng = np.random.default_rng(seed)
    weights = rng.random((4, venues)) * (rng.random((4, venues)) < 0.7)
    chosen = rng.integers(venues, size=4)
    sample = foursquare.sample_lists(weights, chosen, negatives, rng)
    for row in range(4):
        here = sample.checkin == row
        drawn = sample.venue[here & (sample.click == 0)]
        candidates = np.setdiff1d(np.flatnonzero(weights[row]), chosen[row])
        assert set(drawn) <= set(candidates)
        assert len(set(drawn)) == len(drawn) == min(negatives, len(candidates))
        assert sample.venue[here & (sample.click == 1)].tolist() == [chosen[row]]
    assert (sample.propensity > 0).all() and (sample.propensity <= 1).all()
    assert (sample.propensity[sample.click == 1] == 1).all()


def test_propensities_count_the_candidates() -> None:
    """Bottom-k estimates are unbiased: each venue's mean of 1 / propensity is one, its weight whatever it is."""
    weights = np.tile(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 1.0]), (40_000, 1))
    sample = foursquare.sample_lists(weights, np.full(40_000, 5), 3, np.random.default_rng(0))
    estimates = np.bincount(sample.venue, weights=(sample.click == 0) / sample.propensity, minlength=6) / 40_000
    assert estimates[:5] == pytest.approx(np.ones(5), abs=0.05)
    assert estimates[5] == 0


def test_negatives_are_near_and_popular() -> None:
    """Of two equally far venues the one with thrice the weight is drawn first three times as often."""
    weights = np.tile(np.array([0.0, 3.0, 1.0]), (20_000, 1))
    sample = foursquare.sample_lists(weights, np.zeros(20_000, dtype=np.int64), 1, np.random.default_rng(0))
    drawn = np.bincount(sample.venue[sample.click == 0], minlength=3)
    assert drawn[1] / drawn[2] == pytest.approx(3, rel=0.1)


def test_open_hours_by_kind() -> None:
    """A leaf with enough history has its own hours, one hour around each; a rare leaf has its parent's."""
    history = pl.DataFrame(
        {
            "category": ["Cafe"] * 30 + ["Bar"] * 2,
            "specialty": ["Coffee Shop"] * 30 + ["Pub", "Bar"],
            "slot": [8] * 30 + [23, 24 + 20],
        }
    )
    table = foursquare.open_hours(history, ["Coffee Shop", "Pub", "Tea"], ["Cafe", "Bar", "Nowhere"])
    assert np.flatnonzero(table[0]).tolist() == [7, 8, 9]
    assert np.flatnonzero(table[1]).tolist() == [0, 22, 23, 24 + 19, 24 + 20, 24 + 21]
    assert table[2].all(), "no history at all: always open"


def test_published_checkins(tmp_path: Path) -> None:
    root = os.environ.get("SCENERANK_DATA")
    if not root:
        pytest.skip("SCENERANK_DATA is not set: it names the folder that holds foursquare_nyc_dining")
    dataset = load(Path(root) / "foursquare_nyc_dining", negatives=19)
    dataset.write(tmp_path / "sources")
    rows = frame(dataset, "impressions")
    assert rows["click"].sum() == 27_355
    # In the first days fewer venues are known than a list would hold: one that nobody has been to is not there yet.
    assert rows.height == 544_839
    first = rows.filter(pl.col(columns.CLICK) == 1).group_by(columns.POI_ID).agg(pl.col(columns.EVENT_TIMESTAMP).min())
    early = rows.join(first, on=columns.POI_ID, suffix="_first")
    assert early.filter(pl.col(columns.EVENT_TIMESTAMP) < pl.col(f"{columns.EVENT_TIMESTAMP}_first")).is_empty()
    assert dataset.schema.split.test == datetime(2012, 12, 1, 5, tzinfo=UTC)
