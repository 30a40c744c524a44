"""The towers learn a planted preference, and the rankings beside them are what they are said to be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from feature_repo import columns, scenes
from feature_repo.datasets.schema import TIME, Schema, Split
from serving.retriever import Retriever
from trainers import retrieval
from trainers.index import IndexArtefactError, save
from trainers.knowledge import VectorMatrix
from trainers.loop import FitConfig
from trainers.models.tower import TowerConfig
from trainers.retrieval import (
    DAY_US,
    Clicks,
    RetrievalConfig,
    RetrievalData,
    _click_log,
    build,
    hit_rates,
    popularity_scorer,
    ranks,
)
from trainers.tower_inputs import TowerInputs, with_nulls

POIS, USERS = 60, 30
START_US = int(datetime(2015, 5, 4, tzinfo=UTC).timestamp()) * 1_000_000
SCHEMA = Schema(
    dataset="planted",
    timezone="UTC",
    split=Split(
        train=datetime(2015, 5, 4, tzinfo=UTC),
        valid=datetime(2015, 5, 14, tzinfo=UTC),
        test=datetime(2015, 5, 16, tzinfo=UTC),
        end=datetime(2015, 5, 18, tzinfo=UTC),
    ),
)
CONFIG = RetrievalConfig(
    tower=TowerConfig(embedding=8, hidden=32, taste=16, unknown_rate=0.1),
    fit=FitConfig(epochs=10, batch_size=128, warmup_steps=5, patience=10, watch="log_likelihood", learning_rate=1e-2),
)


def pois() -> pa.Table:
    """POI i is of category i mod 3 and lies i % 5 steps to the north; every second one has no opening hours."""
    at = np.arange(POIS)
    return pa.table(
        {
            columns.POI_ID: [f"p{i:02d}" for i in at],
            columns.CATEGORY: [f"c{i % 3}" for i in at],
            columns.SPECIALTY: pa.array([None] * POIS, pa.string()),
            columns.OPEN_HOURS: pa.array([None if i % 2 else "f" * 42 for i in at], pa.string()),
            columns.POI_LATITUDE: 60.0 + (at % 5) * 0.01,
            columns.POI_LONGITUDE: np.full(POIS, 25.0),
        }
    )


def impressions(first_day: int, last_day: int, seed: int) -> pa.Table:
    """User u clicks category u mod 3 in the morning and (u + 1) mod 3 in the evening, always nearby."""
    generator = np.random.default_rng(seed)
    n = 800 * (last_day - first_day)
    user, poi, morning = generator.integers(0, USERS, n), generator.integers(0, POIS, n), generator.integers(0, 2, n)
    hour = np.where(morning == 1, 8, 19)
    times = START_US + generator.integers(first_day, last_day, n) * DAY_US + hour * 3_600_000_000
    step = generator.integers(0, 5, n)
    wanted = (poi % 3 == (user + 1 - morning) % 3) & (np.abs(poi % 5 - step) <= 1)
    catalogue = pois()
    table = pa.table(
        {
            columns.ROW_ID: np.arange(n),
            columns.EVENT_TIMESTAMP: pa.array(times, pa.int64()).cast(TIME),
            scenes.EVENT_TIME_US: times,
            columns.USER_ID: [f"u{u}" for u in user],
            columns.SCENARIO_ID: ["home"] * n,
            columns.CLICK: wanted.astype(np.int8),
            columns.ORDER: np.zeros(n, dtype=np.int8),
            columns.LATITUDE: 60.0 + step * 0.01,
            columns.LONGITUDE: np.full(n, 25.0),
            **{name: catalogue[name].take(pa.array(poi)) for name in catalogue.column_names},
        }
    )
    for name, values in scenes.evaluate({scenes.EVENT_TIME_US: times.tolist()}, SCHEMA).items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return with_nulls(table, ())


def data(text: VectorMatrix | None = None) -> RetrievalData:
    return RetrievalData(
        schema=SCHEMA,
        train=impressions(0, 10, 0),
        valid=impressions(10, 12, 1),
        test=impressions(12, 14, 2),
        pois=pois(),
        text=text,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clicks(times_us: list[int], latitude: list[float | None], item: list[int]) -> Clicks:
    table = pa.table(
        {
            scenes.EVENT_TIME_US: times_us,
            columns.LATITUDE: pa.array(latitude, pa.float64()),
            columns.LONGITUDE: [25.0] * len(item),
        }
    )
    query = TowerInputs.fit(impressions(0, 1, 0), pois(), SCHEMA).query(table)
    return Clicks(table=table, query=query, item_B=np.array(item))


def test_the_towers_find_what_was_planted_and_popularity_cannot() -> None:
    metrics = build(data(), CONFIG, 0).manifest.metrics
    rate = metrics["hit_rate"]
    # Of 60 POIs 24 or 36 are near enough, and a third of these are of the wanted category.
    assert rate["towers"]["20"] > 0.9
    assert rate["towers"]["20"] > rate["nearby_popularity"]["20"] + 0.1
    assert rate["nearby_popularity"]["20"] > rate["popularity"]["20"] + 0.1
    assert rate["popularity"]["200"] == 1.0 and metrics["pois"] == POIS


def test_what_was_measured_is_what_is_served(tmp_path: Path) -> None:
    artefact = build(data(), CONFIG, 0)
    version = save(artefact, tmp_path / "index").version
    retriever = Retriever.load(tmp_path / "index")
    assert retriever.version == version and retriever.artefact.manifest.metrics == artefact.manifest.metrics
    test = data().test
    clicked = test.filter(pa.compute.equal(test[columns.CLICK], 1))
    found = [retriever.retrieve(clicked.slice(i, 1), 20).poi_ids for i in range(len(clicked))]
    hits = [poi in ids for poi, ids in zip(clicked[columns.POI_ID].to_pylist(), found, strict=True)]
    assert np.mean(hits) == pytest.approx(artefact.manifest.metrics["hit_rate"]["towers"]["20"], abs=0.005)


def test_equal_seeds_give_equal_artefacts(tmp_path: Path) -> None:
    quick = RetrievalConfig(tower=CONFIG.tower, fit=FitConfig(epochs=1, batch_size=128, watch="log_likelihood"))
    versions = [save(build(data(), quick, seed), tmp_path / "index").version for seed in (3, 3, 4)]
    assert versions[0] == versions[1] != versions[2]


def test_texts_are_read_and_their_version_is_noted() -> None:
    ids = pois()[columns.POI_ID].combine_chunks()
    matrix = np.concatenate([np.zeros((1, 5)), np.random.default_rng(0).normal(size=(POIS, 5))]).astype(np.float32)
    text = VectorMatrix(
        space="poi_text",
        version="v7",
        matrix=matrix,
        keys=ids,
        rows=np.arange(1, POIS + 1),
        available_at=np.zeros(POIS, dtype=np.int64),
    )
    quick = RetrievalConfig(tower=CONFIG.tower, fit=FitConfig(epochs=1, batch_size=128, watch="log_likelihood"))
    manifest = build(data(text), quick, 0).manifest
    assert manifest.knowledge_versions == {"poi_text": "v7"}
    json.dumps(manifest.metrics)


def test_a_part_without_clicks_and_an_unlisted_poi_are_named() -> None:
    known = data()
    none = known.valid.filter(pa.compute.equal(known.valid[columns.CLICK], 0))
    with pytest.raises(IndexArtefactError, match="valid part has no clicks"):
        build(RetrievalData(**{**vars(known), "valid": none}), CONFIG, 0)
    with pytest.raises(IndexArtefactError, match=r"'p5\d' was clicked but is not in the table"):
        build(RetrievalData(**{**vars(known), "pois": pois().slice(0, 50)}), CONFIG, 0)


def test_ranks_and_hit_rates_by_hand() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [3.0, 2.0, 1.0]])
    found = ranks(lambda rows: scores[rows], clicks([0] * 3, [60.0] * 3, [2, 0, 0]), 3)
    assert found.tolist() == [1.0, 1.0, 0.0]
    assert hit_rates(np.array([0, 19, 20, 49.5, 199, 200, 300, 10])) == {"20": 3 / 8, "50": 5 / 8, "200": 6 / 8}


def test_popularity_counts_clicks_before_training_began_too() -> None:
    """A click on the day before training, of the place that nobody clicks later: it counts on training's first days."""
    known = data()
    first_us = int(known.train[scenes.EVENT_TIME_US].to_numpy().min())
    ids = known.pois[columns.POI_ID].to_pylist()
    times = pa.array([first_us - 3_600_000_000], pa.timestamp("us", tz="UTC"))
    earlier = pa.table({columns.POI_ID: [ids[7]], columns.EVENT_TIMESTAMP: times})
    log, before = (_click_log(RetrievalData(**{**vars(known), "earlier": e})) for e in (earlier, None))
    assert (log["time_us"][0], log["item"][0]) == (first_us - 3_600_000_000, 7)
    assert log["item"][1:].tolist() == before["item"].tolist()
    assert log["time_us"][1:].tolist() == before["time_us"].tolist() == sorted(before["time_us"].tolist())


def test_popularity_counts_the_28_days_before_the_day_and_decays_with_distance() -> None:
    day = 40 * DAY_US
    log = {
        "time_us": np.array([12 * DAY_US - 1, 12 * DAY_US, day - 1, day, day + 5]),
        "item": np.array([0, 1, 1, 2, 2]),
    }
    asked = clicks([day + 7, day + 7], [60.0, None], [0, 0])
    plain = popularity_scorer(log, asked, pois(), None)(np.array([0, 1]))
    assert plain[0, :4].tolist() == [1.0, 3.0, 1.0, 1.0]
    nearby = popularity_scorer(log, asked, pois(), 2.0)(np.array([0, 1]))
    km = 6371.0088 * np.radians(0.01)
    assert nearby[0, :3].tolist() == pytest.approx([1.0, 3 * np.exp(-km / 2), np.exp(-2 * km / 2)])
    assert nearby[1].tolist() == plain[1].tolist()


def test_log_likelihood_by_hand() -> None:
    scores = np.log(np.array([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]]))
    asked = clicks([0, 0], [60.0, 60.0], [2, 0])
    found = retrieval.log_likelihood(lambda rows: scores[rows], asked, 3, 1.0)
    assert found == pytest.approx((np.log(5 / 8) + np.log(4 / 10)) / 2)
