"""Rows that are told apart by no key and no time: the last one of the source counts, whatever reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.stores.duck import DuckConfig
from feature_repo.stores.latest import LatestJob
from feature_repo.stores.merge import Lookup, join
from feature_repo.stores.packed import micros_of

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ENTITIES, ROWS = 2_000, 200_000  # enough for several threads of whoever reads them
STAMP = pa.timestamp("us", "UTC")


def tied() -> pa.Table:
    """Rows of one time, each with a number of its own, later rows of an entity with greater ones or not."""
    rng = np.random.default_rng(5)
    return pa.table(
        {
            "id": rng.integers(0, ENTITIES, ROWS),
            "at": pa.array([NOON] * ROWS, STAMP),
            "made": pa.array([NOON] * ROWS, STAMP),
            "n": rng.permutation(ROWS),
        }
    )


def last_of(rows: pa.Table) -> dict[int, int]:
    return dict(zip(rows["id"].to_pylist(), rows["n"].to_pylist(), strict=True))  # the last of equal keys


def written(rows: pa.Table, folder: Path) -> str:
    """Three files, in the order of their names; the last one is written first and all have several row groups."""
    for at in (2, 0, 1):
        start, end = ROWS * at // 3, ROWS * (at + 1) // 3
        pq.write_table(rows.slice(start, end - start), folder / f"part-{at}.parquet", row_group_size=5_000)
    return str(folder / "part-*.parquet")


@pytest.mark.parametrize("created", ["made", None])
@pytest.mark.parametrize("where", ["files", "table"])
def test_the_newest_row_is_the_last_one(tmp_path, where, created):
    rows = tied()
    job = LatestJob(
        relation=rows if where == "table" else written(rows, tmp_path),
        keys=["id"],
        features=["n"],
        time="at",
        created=created,
        between=(NOON - DAY, NOON + DAY),
        config=DuckConfig(threads=4),
    )
    assert last_of(job.to_arrow()) == last_of(rows)
    assert {k: v for batch in job.to_batches(500) for k, v in last_of(pa.table(batch)).items()} == last_of(rows)
    assert job.to_arrow().num_rows == len(last_of(rows))


@pytest.mark.parametrize("known_only", [False, True])
@pytest.mark.parametrize("part_rows", [ROWS, ROWS // 4])
@pytest.mark.parametrize("late", [timedelta(0), timedelta(hours=1)])
@pytest.mark.parametrize("where", ["files", "table"])
def test_a_row_sees_the_last_one(tmp_path, where, late, part_rows, known_only):
    rows = tied().set_column(2, "made", pa.array([NOON + late] * ROWS, STAMP))
    lookup = Lookup(
        name="tied",
        relation=rows if where == "table" else written(rows, tmp_path),
        keys={"id": "id"},
        features={"n": "n"},
        time="at",
        created="made",
        ttl=DAY,
        known_only=known_only,
    )
    spine = pa.table({"id": np.arange(ENTITIES)})
    found = join(spine, micros_of(pa.array([NOON + 2 * late] * ENTITIES, STAMP)), lookup, part_rows)["n"]
    wanted = last_of(rows)
    assert found.to_pylist() == [wanted.get(entity) for entity in range(ENTITIES)]
