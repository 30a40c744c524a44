"""Retrieval at 10 thousand, 100 thousand and a million POIs: recall of the approximate search, and its time.

Towers are trained on a city; its places' vectors and copies of them with noise are the many, and requests of the test
part that ended in a click ask: a hit is to find the place that was clicked, or a copy of it, among the first 200. With
more copies these are fewer different places. Reference: every vector compared, by the same library on the same core.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from report import Row, write

del sys.path[0]  # where a file is called as a package that this one reads
COUNTS = {10_000: "10k", 100_000: "100k", 1_000_000: "1m"}
NOISE = 0.3  # of a vector's length
K, QUERIES = 200, 600


def main() -> None:
    import torch

    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as folder:
        poi_PE, query_QE, clicked_Q = trained(Path(folder) / "city")
    print(f"{len(poi_PE)} places, {len(query_QE)} requests, {poi_PE.shape[1]} numbers a vector")
    rows: list[Row] = []
    for count, name in COUNTS.items():
        rows += at(count, name, poi_PE, query_QE, clicked_Q)
    write("retrieval", rows)


def trained(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of places (P, E) and of requests of the test part (Q, E), and which place each of these clicked, (Q,)."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from feature_repo import aggregates, columns
    from feature_repo.datasets.city import CityConfig, build
    from feature_repo.store import apply
    from feature_repo.workspace import activate
    from serving.retriever import Retriever
    from trainers import retrieval, training_set

    workspace = activate(root)
    city = CityConfig(users=1000, days=42)
    dataset = build(city)
    dataset.write(workspace.sources)
    aggregates.build(workspace)
    store = apply(workspace)
    from feature_repo import services

    split = dataset.schema.split
    pull = training_set.Pull(service=services.ple.name, start=city.at_day(0), end=split.end)
    folder = training_set.backfill(workspace, store, pull)
    edges = {
        "train": (city.at_day(0), split.valid),
        "valid": (split.valid, split.test),
        "test": (split.test, split.end),
    }
    parts = {part: training_set.read(folder, *between) for part, between in edges.items()}
    data = retrieval.RetrievalData(schema=dataset.schema, **parts, pois=pq.read_table(workspace.source("pois")))
    artefact = retrieval.build(data, retrieval.RetrievalConfig(), seed=0)
    retriever = Retriever(artefact)
    clicks = parts["test"].filter(pc.equal(parts["test"][columns.CLICK], 1))
    asked = clicks.take(np.random.default_rng(0).permutation(len(clicks))[:QUERIES])
    row_of = {poi_id: row for row, poi_id in enumerate(artefact.pois[columns.POI_ID].to_pylist())}
    clicked_Q = np.array([row_of[poi_id] for poi_id in asked[columns.POI_ID].to_pylist()])
    return artefact.index.reconstruct_n(0, artefact.index.ntotal), retriever.embed(asked), clicked_Q


def at(count: int, name: str, poi_PE: np.ndarray, query_QE: np.ndarray, clicked_Q: np.ndarray) -> list[Row]:
    from serving.retriever import ExactSearch, vector_search
    from trainers.index import IndexConfig, build_index

    rng = np.random.default_rng(0)
    place = np.concatenate([np.arange(len(poi_PE)), rng.integers(len(poi_PE), size=count - len(poi_PE))])
    chosen = poi_PE[place[len(poi_PE) :]]
    noise = rng.normal(size=chosen.shape) * NOISE * np.linalg.norm(chosen, axis=1, keepdims=True)
    many = np.concatenate([poi_PE, chosen + noise / np.sqrt(chosen.shape[1])]).astype(np.float32)
    tuned, held_out = query_QE[: QUERIES // 2], query_QE[QUERIES // 2 :]
    clicked = clicked_Q[QUERIES // 2 :]
    started = time.perf_counter()
    index, plan = build_index(many, tuned, IndexConfig(exact_up_to=0))
    built_s = time.perf_counter() - started
    flat = faiss.IndexFlatIP(many.shape[1])
    flat.add(many)
    exact, search = ExactSearch(flat), vector_search(index, plan)
    wanted = [exact.search(query, K, None)[0] for query in held_out]
    found = [search.search(query, K, None)[0] for query in held_out]
    recall = float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, wanted, strict=True)]))
    hits, most = (float(np.mean([c in place[f] for c, f in zip(clicked, s, strict=True)])) for s in (found, wanted))
    ours = median_ms(lambda query: search.search(query, K, None), held_out)
    theirs = median_ms(lambda query: exact.search(query, K, None), held_out)
    # One in a hundred allowed: filters are inside the search.
    allowed = rng.random(count) < 0.01
    filtered = median_ms(lambda query: search.search(query, K, allowed), held_out[:50])
    exactly = median_ms(lambda query: exact.search(query, K, allowed), held_out[:50])
    pairs = [(s.search(query, K, allowed)[0] for s in (search, exact)) for query in held_out[:50]]
    kept = float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))
    print(f"{name}: built in {built_s:.0f} s, {plan.lists} lists, {plan.probes} probed; filtered {filtered:.2f} ms")
    n = len(held_out)
    return [
        Row(name=f"recall-at-200-{name}", ours=recall, reference=1.0, better="higher", unit="share", n=n),
        Row(name=f"hit-rate-at-200-{name}", ours=hits, reference=most, better="higher", unit="share", n=n),
        Row(name=f"ms-vs-exact-{name}", ours=ours, reference=theirs, better="lower", unit="ms", n=n),
        Row(name=f"filtered-recall-at-200-{name}", ours=kept, reference=1.0, better="higher", unit="share", n=50),
        Row(name=f"filtered-ms-vs-exact-{name}", ours=filtered, reference=exactly, better="lower", unit="ms", n=50),
    ]


def median_ms(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    search(queries[0])
    taken = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
