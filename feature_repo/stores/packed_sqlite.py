"""Packed records in one SQLite file: the embedded online store, a table a view, a row an entity.

    online_store:
      type: feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore
      path: online.db

Readers never wait for a writer (write-ahead log), a batch is there whole or not at all, also after a kill. Once its
write has returned it stays, also after a loss of power.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from feast.repo_config import RepoConfig

from feature_repo.stores.layout import Layout, times_of
from feature_repo.stores.packed import PackedConfig, PackedOnlineStore, StoreUnavailable

PATIENCE_S = 30.0  # of a writer for another writer
MAPPED_BYTES = 2**31
PAGE_BYTES = 16_384  # several records with vectors; a single write costs a page
MOST_KEYS = 30_000  # of one query; SQLite allows 32,766 variables


class PackedSqliteOnlineStoreConfig(PackedConfig):
    """
    Args:
        path: of the file, absolute or from the folder of the repository.
    """

    type: str = "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
    path: str = "online.db"


class PackedSqliteOnlineStore(PackedOnlineStore):
    """Records in SQLite; a connection a thread."""

    is_local = True

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.local()

    def get(self, config: RepoConfig, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        try:
            db = self._connection(config)
            return [_records(db, _table(config, table), keys) for table, keys in asked]
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"the file of the online store cannot be read ({error})") from error

    def put(
        self, config: RepoConfig, table: str, layout: Layout, keys: Sequence[bytes], records: Sequence[bytes]
    ) -> None:
        self.create(config, table)
        rows = ((key, *times_of(record), record) for key, record in zip(keys, records, strict=True))
        name = _table(config, table)
        with self._connection(config) as db:
            db.execute("INSERT OR IGNORE INTO layouts VALUES (?, ?)", (name, str(layout)))
            db.executemany(
                f"INSERT INTO {name} VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET event = excluded.event, created = excluded.created, record = excluded.record "
                "WHERE (excluded.event, excluded.created) >= (event, created)",
                rows,
            )

    def times(self, config: RepoConfig, table: str) -> np.ndarray:
        with _perhaps_absent():
            found = self._connection(config).execute(f"SELECT event FROM {_table(config, table)}")
            return np.array([time for (time,) in found], dtype=np.int64)
        return np.zeros(0, dtype=np.int64)

    def announced(self, config: RepoConfig, table: str) -> list[Layout]:
        db = self._connection(config)
        found = db.execute("SELECT layout FROM layouts WHERE records = ?", (_table(config, table),))
        return [Layout.parse(text) for (text,) in found]

    def create(self, config: RepoConfig, table: str) -> None:
        with self._connection(config) as db:
            db.execute(
                f"CREATE TABLE IF NOT EXISTS {_table(config, table)} "
                "(key BLOB PRIMARY KEY, event INTEGER NOT NULL, created INTEGER NOT NULL, record BLOB NOT NULL) "
                "WITHOUT ROWID"  # one search a key, not one for its place and one for its record
            )

    def drop(self, config: RepoConfig, table: str) -> None:
        name = _table(config, table)
        with self._connection(config) as db:
            db.execute(f"DROP TABLE IF EXISTS {name}")
            db.execute("DELETE FROM layouts WHERE records = ?", (name,))

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        path = Path(config.online_store.path)
        path = path if path.is_absolute() or config.repo_path is None else config.repo_path / path
        open_ = getattr(self._own, "connections", None)
        if open_ is None:
            open_ = self._own.connections = {}
        if path not in open_:
            open_[path] = _open(path)
        connection: sqlite3.Connection = open_[path]
        return connection


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=PATIENCE_S)
    db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file
    db.execute("PRAGMA journal_mode = WAL")
    # One sync a batch. Without, a loss of power takes batches back that a stream's ledger says are in.
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}")  # pages are read where they lie, not copied into a small cache
    db.execute("CREATE TABLE IF NOT EXISTS layouts (records TEXT, layout TEXT, PRIMARY KEY (records, layout))")
    return db


def _records(db: sqlite3.Connection, name: str, keys: Sequence[bytes]) -> list[bytes | None]:
    found: dict[bytes, bytes] = {}
    with _perhaps_absent():
        if len(keys) == 1:
            row = db.execute(f"SELECT record FROM {name} WHERE key = ?", keys).fetchone()
            return [row and row[0]]
        for start in range(0, len(keys), MOST_KEYS):
            some = keys[start : start + MOST_KEYS]
            wanted = ",".join("?" * len(some))
            found |= dict(db.execute(f"SELECT key, record FROM {name} WHERE key IN ({wanted})", some))
    return [found.get(key) for key in keys]


@contextmanager
def _perhaps_absent() -> Iterator[None]:
    """A view that was never applied has no table, and no records."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise


def _table(config: RepoConfig, table: str) -> str:
    """Quoted, and never one of this file's own."""
    return '"' + f"{config.project}:{table}".replace('"', '""') + '"'
