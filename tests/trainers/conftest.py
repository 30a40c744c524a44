"""A small pull made by hand, with the columns of a real one and a planted taste: rain wants soup, sun wants ice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo import columns, hours
from feature_repo.datasets.schema import TIME, RequestField, Schema, Split
from feature_repo.scenes import EVENT_TIME_US, evaluate, features_of
from tests.trainers.test_index import artefact
from trainers import recipes
from trainers.batch import Batch
from trainers.bundle import Bundle, Manifest, build_ranker
from trainers.encoding import Encoding
from trainers.index import save
from trainers.knowledge import VectorMatrix

START = datetime(2024, 5, 1, tzinfo=UTC)
ROWS, REQUEST_ROWS, USERS, POIS, VECTOR_WIDTH = 6000, 5, 12, 24, 8
CATEGORIES = ("soup", "ice", "grill")
WEATHERS = ("rain", "sun")


@pytest.fixture(scope="session")
def pull_schema() -> Schema:
    days = [START + timedelta(days=d) for d in (0, 20, 25, 30)]
    return Schema(
        dataset="planted",
        timezone="Europe/Helsinki",
        split=Split(train=days[0], valid=days[1], test=days[2], end=days[3]),
        user_attributes=("age_band",),
        poi_attributes=("price_level",),
        request_fields=(RequestField(name="weather"), RequestField(name="temperature", dtype="float")),
    )


@pytest.fixture(scope="session")
def pull(pull_schema: Schema) -> pa.Table:
    """6,000 impressions over 30 days in time order, 5 a request; some values of every kind are missing."""
    rng = np.random.default_rng(7)
    request = np.repeat(np.arange(ROWS // REQUEST_ROWS), REQUEST_ROWS)
    times_us = np.int64(START.timestamp() * 1e6) + request * np.int64(30 * 86_400e6 / (ROWS // REQUEST_ROWS))
    user, weather = (rng.integers(0, high, request.max() + 1)[request] for high in (USERS, len(WEATHERS)))
    poi = rng.integers(0, POIS, ROWS)
    category = poi % len(CATEGORIES)
    logit = np.where(category == weather, 2.0, -2.0)
    click = rng.random(ROWS) < 1 / (1 + np.exp(-logit))
    order = click & (rng.random(ROWS) < 0.4)
    recent = [[f"p{p}" for p in rng.integers(0, POIS, rng.integers(0, 25))] if u else None for u in user]
    values: dict[str, pa.Array] = {
        columns.ROW_ID: pa.array(np.arange(ROWS)),
        columns.EVENT_TIMESTAMP: pa.array(times_us).cast(TIME),
        EVENT_TIME_US: pa.array(times_us),
        columns.USER_ID: pa.array([f"u{u}" for u in user]),
        columns.POI_ID: pa.array([f"p{p}" for p in poi]),
        columns.SCENARIO_ID: pa.array(np.array(["home", "search"])[request % 2]),
        columns.CLICK: pa.array(click.astype(np.int8)),
        columns.ORDER: pa.array(order.astype(np.int8)),
        columns.LATITUDE: pa.array(np.full(ROWS, 60.17)),
        columns.LONGITUDE: pa.array(np.full(ROWS, 24.94)),
        columns.POI_LATITUDE: pa.array(60.17 + poi / 1000),
        columns.POI_LONGITUDE: pa.array([24.94 if p else None for p in poi]),
        columns.OPEN_HOURS: pa.array([hours.encode(np.ones(168, dtype=bool)) if p % 5 else None for p in poi]),
        "age_band": pa.array([None if u == 1 else "young" for u in user]),
        "price_level": pa.array(["cheap" if p % 2 else "dear" for p in poi]),
        "weather": pa.array([WEATHERS[w] for w in weather]),
        "temperature": pa.array([None if r % 50 == 0 else 15.0 for r in request]),
        columns.CATEGORY: pa.array([CATEGORIES[c] for c in category]),
        columns.SPECIALTY: pa.array([None if p % 7 == 0 else f"dish{p % 5}" for p in poi]),
        columns.RECENT_POIS: pa.array(recent, pa.list_(pa.string())),
        columns.RECENT_TIMES: pa.array(
            [
                None if r is None else [int(t) - (k + 1) * 3_600_000_000 for k in range(len(r))]
                for r, t in zip(recent, times_us, strict=True)
            ],
            pa.list_(pa.int64()),
        ),
        columns.LAST_CATEGORY: pa.array([None if r is None else "soup" for r in recent]),
        columns.LAST_SPECIALTY: pa.array([None if r is None else "dish1" for r in recent]),
        columns.LAST_ORDER_TIME: pa.array(
            [None if r is None else int(t) - 10**10 for r, t in zip(recent, times_us, strict=True)], pa.int64()
        ),
    }
    for owner in columns.STATISTICS:
        for days in columns.WINDOW_DAYS:
            for count, high in zip(columns.COUNTS, (50, 10, 3), strict=True):
                values[columns.statistic(owner, count, days)] = pa.array(rng.integers(0, high, ROWS))
    table = pa.table(values)
    scenes = evaluate({name: table[name].to_pylist() for name in table.column_names}, pull_schema)
    names = {name: at + 1 for at, name in enumerate(sorted({(c, v) for c, vs in scenes.items() for v in vs if v}))}
    for feature in features_of(pull_schema):
        column = columns.scene(feature.name)
        table = table.append_column(column, pa.array(scenes[column], pa.string()))
        rows = [names[column, v] if v else 0 for v in scenes[column]]
        table = table.append_column(columns.scene_row(feature.name), pa.array(rows, pa.int64()))
    return table.append_column(columns.knowledge("poi_text", columns.ROW), pa.array(poi + 1))


def vectors(space: str, rows: int) -> VectorMatrix:
    matrix = np.random.default_rng(3).normal(size=(rows + 1, VECTOR_WIDTH)).astype(np.float32) + 5.0
    matrix[0] = 0.0
    return VectorMatrix(
        space=space,
        version=f"{space}-v1",
        matrix=matrix,
        keys=pa.array([f"k{i}" for i in range(rows)]),
        rows=np.arange(1, rows + 1),
        available_at=np.zeros(rows, dtype=np.int64),
    )


@pytest.fixture(scope="session")
def matrices() -> dict[str, VectorMatrix]:
    return {"scene_text": vectors("scene_text", 100), "poi_text": vectors("poi_text", POIS)}


@pytest.fixture(scope="session")
def bundle(pull: pa.Table, pull_schema: Schema, matrices: dict[str, VectorMatrix]) -> Bundle:
    """An untrained LARR: what a bundle keeps does not depend on how good it is."""
    recipe = replace(recipes.larr("tiny"), fit=replace(recipes.larr("tiny").fit, weight_decay=0))
    encoding = Encoding.fit(pull, pull_schema)
    used = {space: matrices[space] for space in ("poi_text", "scene_text")}
    ranker = build_ranker(recipe.model, encoding, used)
    ranker.fit_vectors(Batch.from_arrow(pull, encoding))
    manifest = Manifest(
        model=recipe.name,
        service="planted_1",
        features=("poi_profile:category", "user_state:recent_pois"),
        scene_fingerprints={"weather": "abc"},
        knowledge_versions={"poi_text": "poi_text-v1", "scene_text": "scene_text-v1"},
        dataset="planted",
        trained_until=pull_schema.split.valid,
        seed=1,
        recipe=recipe,
        metrics={"click": {"auc": 0.5, "gauc": None}},
        runtime={"python": "3.11"},
    )
    return Bundle.of(manifest, encoding, pull_schema, ranker, used)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save(artefact(), tmp_path / "index")
    return tmp_path / "index"
