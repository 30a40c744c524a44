"""How large a store of knowledge is for so many users: its file, its matrix in memory, its rows online.

The file is written, and read, as `trainers.language` and `trainers.knowledge` do it, with vectors drawn at random and
no text beside them. Online means the embedded store, filled by `materialize` from a file of the first few users: what a
user takes there does not depend on how many there are.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.experiments.scale_point import VECTOR_WIDTH
from benchmarks.report import peak_mib
from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema, Split
from feature_repo.workspace import ENVIRONMENT_VARIABLE, Workspace
from trainers.knowledge import USER_KNOWLEDGE, load_matrix
from trainers.language.parquet import hash_of, knowledge_table, vector_array, write

SNAPSHOT = datetime(2024, 5, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """
    Args:
        online_users: so many of them are put online.
    """

    users: int
    online_users: int = 2_000


@dataclass(frozen=True, kw_only=True)
class StoreFound:
    """What it took.

    Attributes:
        file_mib: of the Parquet file; write_s, read_s: seconds of writing it and of loading its matrix.
        matrix_mib: in memory, and in a bundle.
        online_bytes: of SQLite's file, a user; online_users_per_second: as Feast materialises them.
    """

    file_mib: float
    write_s: float
    read_s: float
    matrix_mib: float
    online_bytes: float
    online_users_per_second: float
    peak_mib: float


def measure(stored: Stored) -> StoreFound:
    """Write, read and materialise, in a folder that is removed. For a process of its own: Feast's definitions are read
    in it for a workspace that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "scale")
        path = workspace.knowledge / f"{USER_KNOWLEDGE}.parquet"
        vectors = np.random.default_rng(0).standard_normal((stored.users, VECTOR_WIDTH), dtype=np.float32)
        few = vectors[: stored.online_users].copy()
        started = time.perf_counter()
        write(table(vectors), path)
        write_s = time.perf_counter() - started
        del vectors  # so that loading has the memory to itself
        file_mib = path.stat().st_size / 2**20
        started = time.perf_counter()
        matrix_mib = load_matrix(path).matrix.nbytes / 2**20
        read_s = time.perf_counter() - started
        write(table(few), path)
        online_bytes, seconds = _online(workspace)
        return StoreFound(
            file_mib=file_mib,
            write_s=write_s,
            read_s=read_s,
            matrix_mib=matrix_mib,
            online_bytes=online_bytes / len(few),
            online_users_per_second=len(few) / seconds,
            peak_mib=peak_mib(),
        )


def table(vectors: np.ndarray) -> pa.Table:
    """A knowledge file's table: a vector (n, width) for each user, of one snapshot, without words."""
    count = len(vectors)
    keys = [f"u{number}" for number in range(count)]
    silent = pa.array([""] * count)
    fields = {
        columns.ROW: pa.array(np.arange(1, count + 1)),
        columns.VERSION: pa.array(["random"] * count),
        columns.TEXT_HASH: pa.array([hash_of(key) for key in keys]),
        columns.TEXT: silent,
        columns.WORDS: silent,
        columns.TOLD: silent,
        columns.VECTOR: vector_array(list(vectors)),
    }
    times = pa.array([SNAPSHOT] * count, TIME)
    return knowledge_table(USER_KNOWLEDGE, pa.array(keys), times, fields)


def _online(workspace: Workspace) -> tuple[int, float]:
    """Bytes that SQLite's file grows by, and seconds, when Feast materialises the knowledge file."""
    month = timedelta(days=30)
    days = [SNAPSHOT + at * month for at in range(4)]
    schema = Schema(
        dataset="scale", timezone="UTC", split=Split(train=days[0], valid=days[1], test=days[2], end=days[3])
    )
    workspace.sources.mkdir(parents=True)
    schema.save(workspace.schema)
    os.environ[ENVIRONMENT_VARIABLE] = str(workspace.root)  # read when Feast's definitions are
    from feature_repo import entities, knowledge, store
    from serving.stages import quiet

    store.render(workspace)
    feast = store.open_store(workspace)
    with quiet():
        feast.apply([entities.user, knowledge.user_knowledge])
        before = _size(workspace)
        seconds = _seconds(lambda: feast.materialize(SNAPSHOT - month, SNAPSHOT + timedelta(hours=1)))
    return _size(workspace) - before, seconds


def _size(workspace: Workspace) -> int:
    """Bytes of the online store, once its log is part of it."""
    file = workspace.root / "online.db"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return file.stat().st_size


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
