"""Makes a small complete workspace: a city, applied and materialised, with vectors, two bundles and an index.

Beside them lies `offline.parquet`: what an offline pull says of some impressions at the very moment up to which the
online store was materialised.

Run as a program of its own, because Feast definitions read the workspace once in a process. Vectors are random and
rankers untrained: what is tested is how answers are made, not whether they please.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from feature_repo import aggregates, columns, scenes
from feature_repo.datasets.city import CityConfig, build
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.store import apply
from feature_repo.workspace import Workspace, activate
from trainers import bundle as bundles
from trainers import index, recipes, training_set
from trainers.bundle import Bundle, Manifest
from trainers.encoding import Encoding
from trainers.knowledge import load_matrix
from trainers.language.texts import collect
from trainers.loop import FitConfig
from trainers.retrieval import RetrievalConfig, RetrievalData
from trainers.retrieval import build as build_index

CITY = CityConfig(users=40, pois=60, days=21, requests_per_user_day=0.5, candidates=8)
WIDTH = 8
ROWS = 100


def main(root: Path) -> None:
    workspace = activate(root)
    dataset = build(CITY)
    # All that a dataset can keep, so that all of it is compared online and offline.
    kept = {"statistics": tuple(columns.STATISTICS), "window_days": (7, 28, 365), "like_minded": True, "shown_in": True}
    pois, scenarios = dataset.tables["pois"], dataset.tables["scenarios"][columns.SCENARIO_ID].to_pylist()
    # Some may be shown everywhere, others in every scenario by name, so that no test misses one.
    shown_in = pa.array([None if at % 2 else scenarios for at in range(len(pois))])
    tables = {**dataset.tables, "pois": pois.append_column(columns.SHOWN_IN, shown_in)}
    dataset = replace(dataset, schema=replace(dataset.schema, **kept), tables=tables)
    dataset.write(workspace.sources)
    aggregates.build(workspace)
    for space in columns.KNOWLEDGE:
        write_knowledge(workspace, space)
    store = apply(workspace)
    split = dataset.schema.split
    start = dataset.tables["users"][columns.EVENT_TIMESTAMP][0].as_py()
    store.materialize(start_date=start.replace(year=start.year - 1), end_date=split.test)
    services = [write_bundle(workspace, store, recipe) for recipe in (recipes.larr("tiny"), recipes.ple("tiny"))]
    write_index(workspace, services[0])
    write_offline(workspace, store, services[0])


def write_knowledge(workspace: Workspace, space: str) -> None:
    """A random vector for every text of one space."""
    texts = collect(workspace, space)
    n = len(texts)
    vectors = np.random.default_rng(len(space)).normal(size=(n, WIDTH)).astype(np.float32)
    table = texts.append_column(columns.knowledge(space, columns.ROW), pa.array(np.arange(1, n + 1)))
    table = table.append_column(columns.knowledge(space, columns.VERSION), pa.array(["v1"] * n))
    table = table.append_column(columns.knowledge(space, columns.TEXT_HASH), pa.array(["h"] * n))
    table = table.append_column(columns.knowledge(space, columns.VECTOR), pa.array(list(vectors)))
    table = table.append_column(columns.knowledge(space, columns.TEXT), texts[columns.TEXT])
    workspace.knowledge.mkdir(exist_ok=True)
    pq.write_table(table, workspace.knowledge / f"{space}.parquet")


def write_offline(workspace: Workspace, store: Any, service: str) -> None:
    """The last impressions of the log as of the test part's beginning; every tenth of an unknown user or POI."""
    spine = pq.read_table(workspace.source("impressions"))
    spine = spine.slice(len(spine) - ROWS)
    unknown = pa.array(np.arange(ROWS) % 10 == 3)
    for name, mask in ((columns.USER_ID, unknown), (columns.POI_ID, pa.array(np.arange(ROWS) % 10 == 7))):
        changed = pc.if_else(mask, "nobody", spine[name])
        spine = spine.set_column(spine.column_names.index(name), name, changed)
    moment = pa.array([Schema.load(workspace.schema).split.test] * ROWS, TIME)
    spine = spine.set_column(spine.column_names.index(columns.EVENT_TIMESTAMP), columns.EVENT_TIMESTAMP, moment)
    pq.write_table(training_set.join(workspace, store, service, spine), workspace.root / "offline.parquet")


def write_index(workspace: Workspace, service: str) -> None:
    schema = Schema.load(workspace.schema)
    folder = next(workspace.training.glob(f"{service}-*"))
    split = schema.split
    edges = {
        "train": (CITY.at_day(0), split.valid),
        "valid": (split.valid, split.test),
        "test": (split.test, split.end),
    }
    parts = {part: training_set.read(folder, *between) for part, between in edges.items()}
    data = RetrievalData(schema=schema, **parts, pois=pq.read_table(workspace.source("pois")))
    config = RetrievalConfig(fit=FitConfig(epochs=1, batch_size=256, warmup_steps=1, watch="log_likelihood"))
    index.save(build_index(data, config, seed=1), workspace.index)


def write_bundle(workspace: Workspace, store: Any, recipe: recipes.Recipe) -> str:
    """A bundle of an untrained ranker; returns the name of its service."""
    from feature_repo import services

    service = {"larr": services.larr, "ple": services.ple}[recipe.name]
    schema = services.sources.SCHEMA
    split = schema.split
    pull = training_set.Pull(service=services.larr.name, start=CITY.at_day(0), end=split.end)  # the widest
    table = training_set.read(training_set.backfill(workspace, store, pull), CITY.at_day(0), split.valid)
    encoding = Encoding.fit(training_set.narrow(table, services.feature_references(service)), schema)
    if recipe.name == "larr":
        features = replace(recipe.model.features, text_spaces=encoding.text_spaces)
        recipe = replace(recipe, model=replace(recipe.model, features=features))
    spaces = bundles.spaces_of(recipe.model)
    matrices = {space: load_matrix(workspace.knowledge / f"{space}.parquet") for space in spaces}
    torch.manual_seed(1)
    manifest = Manifest(
        model=recipe.name,
        service=service.name,
        features=services.feature_references(service),
        scene_fingerprints=scenes.fingerprints(schema),
        knowledge_versions={space: matrix.version for space, matrix in matrices.items()},
        dataset=schema.dataset,
        trained_until=split.valid,
        seed=1,
        recipe=recipe,
        metrics={},
        runtime={},
    )
    ranker = bundles.build_ranker(recipe.model, encoding, matrices)
    Bundle.of(manifest, encoding, schema, ranker, matrices).save(workspace.bundles / recipe.name)
    return service.name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
