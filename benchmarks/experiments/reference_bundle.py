"""A city whose bundle has the reference size, with random vectors and weights, and requests to ask it: for timings.

python -m benchmarks.experiments.reference_bundle FOLDER 1 50 200 1000        the numbers: places in a request
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from feature_repo import aggregates, columns, scenes
from feature_repo.datasets.city import CityConfig, build
from feature_repo.store import apply
from feature_repo.workspace import Workspace, activate
from serving.client import Asker
from serving.v1 import recommender_pb2 as pb
from trainers import bundle as bundles
from trainers import recipes, training_set
from trainers.bundle import Bundle, Manifest
from trainers.encoding import Encoding
from trainers.knowledge import load_matrix
from trainers.language.texts import collect

WIDTH = 128  # of a vector


def prepare(root: Path, sizes: Sequence[int]) -> None:
    """A city with random vectors and a bundle of random weights, and requests to ask it."""
    workspace = activate(root)
    city = CityConfig(users=400, pois=1500, days=21, requests_per_user_day=0.5)
    dataset = build(city)
    dataset = replace(dataset, schema=replace(dataset.schema, window_days=(28,)))
    dataset.write(workspace.sources)
    aggregates.build(workspace)
    for space in columns.SPACES:
        write_vectors(workspace, space)
    store = apply(workspace)
    split = dataset.schema.split
    store.materialize(start_date=city.at_day(0).replace(year=2011), end_date=split.test)
    from feature_repo import services

    service, recipe = services.llm4msr, recipes.larr_llm4msr("reference")
    assert service is not None
    pull = training_set.Pull(service=service.name, start=city.at_day(0), end=split.valid)
    table = training_set.read(training_set.backfill(workspace, store, pull), city.at_day(0), split.valid)
    references = services.feature_references(service)
    encoding = Encoding.fit(training_set.narrow(table, references), dataset.schema)
    matrices = {s: load_matrix(workspace.knowledge / f"{s}.parquet") for s in bundles.spaces_of(recipe.model)}
    torch.manual_seed(0)
    manifest = Manifest(
        model=recipe.name,
        service=service.name,
        features=references,
        scene_fingerprints=scenes.fingerprints(dataset.schema),
        knowledge_versions={space: matrix.version for space, matrix in matrices.items()},
        dataset=dataset.schema.dataset,
        trained_until=split.valid,
        seed=0,
        recipe=recipe,
        metrics={},
        runtime={},
    )
    ranker = bundles.build_ranker(recipe.model, encoding, matrices)
    Bundle.of(manifest, encoding, dataset.schema, ranker, matrices).save(workspace.bundles / "reference")
    write_requests(workspace, split.test, sizes)


def write_vectors(workspace: Workspace, space: str) -> None:
    """Random knowledge: of every text of a space, or of every user and scenario."""
    if space in columns.KNOWLEDGE:
        texts = collect(workspace, space)
    else:
        key = columns.PROMPTED[space]
        source = pq.read_table(workspace.source("users" if key == columns.USER_ID else "scenarios"))
        texts = source.select([key, columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP])
        for field in (columns.TEXT, columns.WORDS, columns.TOLD):
            texts = texts.append_column(columns.knowledge(space, field), pa.array([""] * len(texts)))
    n = len(texts)
    vectors = np.random.default_rng(0).normal(size=(n, WIDTH)).astype(np.float32)
    for field, values in (
        (columns.ROW, pa.array(np.arange(1, n + 1))),
        (columns.VERSION, pa.array(["v"] * n)),
        (columns.TEXT_HASH, pa.array(["h"] * n)),
        (columns.VECTOR, pa.array(list(vectors))),
    ):
        texts = texts.append_column(columns.knowledge(space, field), values)
    workspace.knowledge.mkdir(exist_ok=True)
    pq.write_table(texts, workspace.knowledge / f"{space}.parquet")


def write_requests(workspace: Workspace, moment: datetime, sizes: Sequence[int]) -> None:
    """Requests of each size, one a line: users, scenarios and places of the log at random, in rain and in sun."""

    def ids(name: str, key: str) -> list[str]:
        known = pq.read_table(workspace.source(name), filters=[(columns.EVENT_TIMESTAMP, "<=", moment)])
        return list(dict.fromkeys(known[key].to_pylist()))

    users, pois = ids("users", columns.USER_ID), ids("pois", columns.POI_ID)
    scenarios, rng = ids("scenarios", columns.SCENARIO_ID), np.random.default_rng(0)
    for size in sizes:
        lines = []
        for _ in range(200):
            asker = Asker(
                user_id=str(rng.choice(users)),
                scenario_id=str(rng.choice(scenarios)),
                time=moment,
                place=(60.17, 24.94),
                scene={"weather": str(rng.choice(["rain", "sun"])), "temperature": 7.0},
            )
            chosen = [str(poi) for poi in rng.choice(pois, size, replace=False)]
            message = pb.RankRequest(context=asker.message(), poi_ids=chosen)
            lines.append(message.SerializeToString().hex())
        (workspace.root / f"requests-{size}").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
