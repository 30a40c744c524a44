"""Behaviour statistics of a large log: every count of every key at every midnight on which it changes.

The reference is the least that anything must do with the same events: DuckDB reads them once and counts them by user
and day. Both run in processes of their own, which report seconds and their peak memory above that after the imports.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import Row, answer_of, peak_mib, write

from feature_repo import aggregates, columns
from feature_repo.datasets.schema import TIME, Schema, Split
from feature_repo.workspace import Workspace

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 56
USERS, POIS, CATEGORIES, SPECIALTIES = 100_000, 10_000, 40, 400
DAY_US = 86_400_000_000
PART = 1_000_000  # rows written at a time
SIDES = ("ours", "reference")


def write_log(workspace: Workspace, events: int) -> None:
    """Impressions with Zipf-like users and POIs, one in ten clicked, three in ten of these ordered."""
    workspace.sources.mkdir(parents=True)
    split = Split(train=START, valid=START, test=START, end=START + timedelta(days=DAYS))
    Schema(dataset="generated", timezone="Europe/Helsinki", split=split).save(workspace.schema)
    numbers = np.arange(POIS)
    pois = {
        columns.POI_ID: [f"p{n}" for n in numbers],
        columns.CATEGORY: [f"c{n}" for n in numbers % CATEGORIES],
        columns.SPECIALTY: [f"s{n}" for n in numbers % SPECIALTIES],
    }
    pq.write_table(pa.table(pois), workspace.source("pois"))
    rng, writer = np.random.default_rng(0), None
    for start in range(0, events, PART):
        n = min(PART, events - start)
        shown = np.sort(rng.integers(0, DAYS * DAY_US, n)) + int(START.timestamp() * 1e6)
        click = rng.random(n) < 0.1
        table = pa.table(
            {
                columns.ROW_ID: np.arange(start, start + n),
                columns.EVENT_TIMESTAMP: pa.array(shown, pa.int64()).cast(TIME),
                columns.OUTCOME_TIMESTAMP: pa.array(shown + rng.integers(1, 60_000_000, n), pa.int64()).cast(TIME),
                columns.USER_ID: [f"u{u}" for u in (USERS * rng.random(n) ** 2).astype(int)],
                columns.POI_ID: [f"p{p}" for p in (POIS * rng.random(n) ** 2).astype(int)],
                columns.SCENARIO_ID: [f"scenario{s}" for s in rng.integers(0, 6, n)],
                columns.CLICK: click.astype(np.int8),
                columns.ORDER: (click & (rng.random(n) < 0.3)).astype(np.int8),
            }
        )
        writer = writer or pq.ParquetWriter(workspace.source("impressions"), table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(side: str, workspace: Workspace) -> None:
    """Do one side's work in this process and print its measurements as JSON."""
    import duckdb

    before, started = peak_mib(), time.perf_counter()
    if side == "ours":
        written = aggregates.build(workspace)
        rows = sum(pq.read_metadata(path).num_rows for path in written)
    else:
        day = f"date_trunc('day', {columns.OUTCOME_TIMESTAMP})"
        counts = f'count(*) AS n, sum({columns.CLICK}) AS c, sum("{columns.ORDER}") AS o'
        path, to = workspace.source("impressions"), workspace.root / "counted.parquet"
        query = f"SELECT {columns.USER_ID}, {day} AS d, {counts} FROM read_parquet('{path}') GROUP BY ALL"
        with duckdb.connect() as db:
            db.execute(f"COPY ({query}) TO '{to}' (FORMAT parquet, COMPRESSION zstd)")
        rows = pq.read_metadata(to).num_rows
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "mib": peak_mib() - before, "rows": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="impressions of the log")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, Workspace(options.folder))
        return
    with tempfile.TemporaryDirectory(prefix="counts-") as name:
        folder = Path(name) / "log"
        write_log(Workspace(folder), options.events)
        found = {}
        for side in SIDES:
            found[side] = answer_of(__file__, "--side", side, "--folder", str(folder))
    ours, bare = found["ours"], found["reference"]
    n = options.events
    rates = {"ours": n / ours["seconds"], "reference": n / bare["seconds"], "unit": "events/s"}
    write(
        "counts",
        [
            Row(name="events-vs-one-count", better="higher", n=n, **rates),
            Row(name="memory-vs-one-count", ours=ours["mib"], reference=bare["mib"], better="lower", unit="MiB", n=n),
            Row(name="rows-written", ours=ours["rows"], reference=bare["rows"], better="lower", unit="rows", n=n),
        ],
    )


if __name__ == "__main__":
    main()
