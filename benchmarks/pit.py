"""Point-in-time joins: our ASOF store against Feast's stores, and DuckDB, polars and pandas by hand, on the same data.

Three views of `entities` keys with `versions` rows each, TTL 365 days; every engine runs in a process of its own, which
reports seconds of the join and its peak memory above that after the imports. All engines must agree on a checksum.
Feast's file store (Dask) cannot hold these sizes: it joins a small part, and what it loses of it is counted. An engine
that takes longer than --patience is stopped; its row then has that time, so that the ratio is at most what it says. So
has the row of one that runs out of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from report import Row, answer_of, peak_mib, write

VIEWS = 3
DAY_US = 86_400_000_000
START_US = 1_600_000_000_000_000
TIME = pa.timestamp("us", tz="UTC")
ENGINES = ("asof-store", "feast-duckdb", "asof-by-hand", "polars", "pandas")
SPINES = (1_000_000, 5_000_000)  # rows
VERSIONS = (100, 1000)  # of an entity
PATIENCE_S = 300.0
FILE_STORE = "feast-file"
SMALL = {"spine_rows": 20_000, "entities": 2_000, "versions": 100}  # that Feast's file store can hold


def write_data(folder: Path, spine_rows: int, entities: int, versions: int) -> None:
    """The spine and the views: every entity has a version about every 365 / versions days."""
    rng = np.random.default_rng(0)
    span = 365 * DAY_US
    for view in range(VIEWS):
        keys = np.repeat(np.arange(entities), versions)
        times = np.sort(rng.integers(0, span, len(keys))) + START_US
        values = rng.normal(size=len(keys))
        table = {"id": rng.permutation(keys), "event_timestamp": pa.array(times, pa.int64()).cast(TIME)}
        pq.write_table(pa.table({**table, f"value_{view}": values}), folder / f"view_{view}.parquet")
    spine = {
        "row": np.arange(spine_rows),
        "id": rng.integers(0, entities, spine_rows),
        "event_timestamp": pa.array(rng.integers(0, span, spine_rows) + START_US, pa.int64()).cast(TIME),
    }
    pq.write_table(pa.table(spine), folder / "spine.parquet")


def feast_job(folder: Path, offline: str) -> Callable[[], pa.Table]:
    """Feast's `get_historical_features` on an offline store."""
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Float64
    from feast.value_type import ValueType

    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"view_{view}",
            entities=[entity],
            ttl=timedelta(days=365),
            schema=[Field(name=f"value_{view}", dtype=Float64)],
            source=FileSource(path=str(folder / f"view_{view}.parquet"), timestamp_field="event_timestamp"),
        )
        for view in range(VIEWS)
    ]
    config: dict[str, Any] = {
        "registry": {"registry_type": "sql", "path": f"sqlite:///{folder}/{offline[-5:]}.db"},
        "offline_store": {"type": offline},
        "online_store": {"type": "sqlite", "path": f"{folder}/online.db"},
    }
    store = FeatureStore(
        config=RepoConfig(project="pit", provider="local", entity_key_serialization_version=3, **config)
    )
    store.apply([entity, *views])
    spine = pq.read_table(folder / "spine.parquet").to_pandas()
    names = [f"view_{view}:value_{view}" for view in range(VIEWS)]
    return lambda: store.get_historical_features(spine, names).to_arrow()


def duckdb_job(folder: Path) -> Callable[[], pa.Table]:
    """What one would write by hand: a chain of ASOF joins."""
    import duckdb

    joins = " ".join(
        f"ASOF LEFT JOIN read_parquet('{folder}/view_{v}.parquet') v{v} "
        f"ON s.id = v{v}.id AND s.event_timestamp >= v{v}.event_timestamp"
        for v in range(VIEWS)
    )
    values = ", ".join(f"value_{v}" for v in range(VIEWS))
    spine = pq.read_table(folder / "spine.parquet")

    def join() -> pa.Table:
        with duckdb.connect() as db:
            db.execute("SET asof_loop_join_threshold = 0")
            db.register("spine", spine)
            return db.execute(f"SELECT s.row, {values} FROM spine s {joins}").to_arrow_table()

    return join


def polars_job(folder: Path) -> Callable[[], pa.Table]:
    """polars `join_asof`, sorting included."""
    import polars as pl

    spine = pl.read_parquet(folder / "spine.parquet")

    def join() -> pa.Table:
        joined = spine.sort("event_timestamp")
        for view in range(VIEWS):
            versions = pl.read_parquet(folder / f"view_{view}.parquet").sort("event_timestamp")
            joined = joined.join_asof(versions, on="event_timestamp", by="id")
        return joined.to_arrow()

    return join


def pandas_job(folder: Path) -> Callable[[], pa.Table]:
    """pandas `merge_asof`, reading and sorting included."""
    import pandas as pd

    spine = pd.read_parquet(folder / "spine.parquet")

    def join() -> pa.Table:
        joined = spine.sort_values("event_timestamp")
        for view in range(VIEWS):
            versions = pd.read_parquet(folder / f"view_{view}.parquet").sort_values("event_timestamp")
            joined = pd.merge_asof(joined, versions, on="event_timestamp", by="id")
        return pa.Table.from_pandas(joined)

    return join


def measure(engine: str, folder: Path) -> None:
    """Run one engine in this process and print its measurements as JSON."""
    warnings.simplefilter("ignore")
    jobs: dict[str, Callable[[], Callable[[], pa.Table]]] = {
        "asof-store": lambda: feast_job(folder, "feature_repo.stores.asof.AsofOfflineStore"),
        "feast-duckdb": lambda: feast_job(folder, "duckdb"),
        FILE_STORE: lambda: feast_job(folder, "file"),
        "asof-by-hand": lambda: duckdb_job(folder),
        "polars": lambda: polars_job(folder),
        "pandas": lambda: pandas_job(folder),
    }
    join = jobs[engine]()
    before = peak_mib()
    started = time.perf_counter()
    table = join()
    seconds = time.perf_counter() - started
    memory = peak_mib() - before
    checksum = [pc.sum(table[f"value_{view}"]).as_py() for view in range(VIEWS)]
    print(json.dumps({"seconds": seconds, "mib": memory, "rows": len(table), "checksum": checksum}))


def joined_by(engine: str, folder: Path, patience_s: float) -> dict[str, Any]:
    """One engine in a process of its own; without `rows` where it was stopped, or had no memory left."""
    started = time.perf_counter()
    try:
        return answer_of(__file__, "--engine", engine, "--folder", str(folder), folder=folder, patience_s=patience_s)
    except subprocess.TimeoutExpired:
        print(engine, f"stopped after {patience_s:.0f} s", flush=True)
        return {"seconds": patience_s}
    except MemoryError:
        print(engine, "ran out of memory", flush=True)
        return {"seconds": time.perf_counter() - started}


def run(folder: Path, repeats: int, patience_s: float) -> dict[str, dict[str, float]]:
    """Median seconds and memory of every engine, engines taking turns; of one that was stopped, seconds alone.

    Raises AssertionError where they disagree.
    """
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            found[engine].append(joined_by(engine, folder, patience_s))
    first = found[ENGINES[0]][0]
    for results in found.values():
        ended = [r for r in results if "rows" in r]
        assert all(r["rows"] == first["rows"] and np.allclose(r["checksum"], first["checksum"]) for r in ended)
    return {
        engine: {k: float(np.median([r[k] for r in results])) for k in ("seconds", "mib") if k in results[0]}
        for engine, results in found.items()
    }


def at_size(spine_rows: int, rows: int, versions: int, repeats: int, patience_s: float) -> list[Row]:
    """Time against every engine, and memory against Feast's DuckDB store."""
    with tempfile.TemporaryDirectory(prefix="pit-") as name:
        write_data(Path(name), spine_rows, rows // versions, versions)
        found = run(Path(name), repeats, patience_s)

    def row(name: str, engine: str, measured: str, unit: str) -> Row:
        ours, theirs = found["asof-store"][measured], found[engine][measured]
        return Row(name=name, ours=ours, reference=theirs, better="lower", unit=unit, n=spine_rows)

    large = "" if spine_rows == SPINES[0] else f"-{spine_rows:,}-rows"
    also = ("" if versions == VERSIONS[0] else f"-{versions}") + large
    rows = [row(f"time-vs-feast-duckdb-{versions}{large}", "feast-duckdb", "seconds", "s")]
    rows += [row(f"time-vs-{engine}{also}", engine, "seconds", "s") for engine in ENGINES[2:]]
    if "mib" in found["feast-duckdb"]:
        rows.append(row(f"memory-vs-feast-duckdb{also}", "feast-duckdb", "mib", "MiB"))
    return rows


def against_file_store() -> list[Row]:
    """Time, and rows that come back, where Feast's file store can take part."""
    with tempfile.TemporaryDirectory(prefix="pit-") as name:
        write_data(Path(name), **SMALL)
        ours, theirs = (joined_by(engine, Path(name), PATIENCE_S) for engine in ("asof-store", FILE_STORE))

    def row(name: str, measured: str, unit: str, better: Literal["lower", "higher"]) -> Row:
        n = SMALL["spine_rows"]
        return Row(name=name, ours=ours[measured], reference=theirs[measured], better=better, unit=unit, n=n)

    return [
        row("time-vs-feast-file-small", "seconds", "s", "lower"),
        row("rows-vs-feast-file-small", "rows", "rows", "higher"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spine", type=int, nargs="+", default=SPINES, help="spine rows")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of each view")
    parser.add_argument("--versions", type=int, nargs="+", default=VERSIONS, help="rows of each entity")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds until an engine is stopped")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engine", choices=(*ENGINES, FILE_STORE), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measure(options.engine, options.folder)
        return
    rows = []
    for spine, versions in product(options.spine, options.versions):
        rows += at_size(spine, options.rows, versions, options.repeats, options.patience)
    write("pit", rows + against_file_store())


if __name__ == "__main__":
    main()
