"""The newest row of every entity in a range of event times, streamed: what `materialize` asks an offline store for.

Which row is the newest is settled by keys and times alone; values are then read of those rows only, in batches, so
that memory does not grow with the width of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import duckdb
import numpy as np
import pyarrow as pa

from feature_repo.sql import quoted, text
from feature_repo.stores.duck import DuckConfig, LazyJob, configure

FILE, ROW = "its file", "its row"  # names of columns that no table of ours has


class LatestJob(LazyJob):
    """Of each entity the row with the newest event time, then the newest creation time, then the last one of the
    source, as writes in the order of the source leave it online. Rows without a key belong to no entity."""

    def __init__(
        self,
        *,
        relation: str | pa.Table,
        keys: Sequence[str],
        features: Sequence[str],
        time: str,
        created: str | None,
        between: tuple[datetime, datetime],
        config: DuckConfig,
    ) -> None:
        """
        Args:
            relation: a path of Parquet files, or a table.
            created: the column of creation times; None or empty: there is none.
            between: event times, both ends included; without a zone they are UTC.
        """
        super().__init__()
        self._relation = relation
        self._keys = keys
        self._times = [time, created] if created else [time]
        self._columns = list(dict.fromkeys([*keys, *features, *self._times]))
        self._between = between
        self._config = config

    def to_batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The answer in batches of about `rows`, computed as they are wanted."""
        with duckdb.connect() as db:
            db.execute("SET preserve_insertion_order = false")
            yield from self._asked(db).to_arrow_reader(rows)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with duckdb.connect() as db:
            return self._asked(db).to_arrow_table()

    def _asked(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        configure(db, self._config)
        relation = self._relation
        query = self._of_files(relation) if isinstance(relation, str) else self._of_table(relation, db)
        return db.execute(query, [_utc(moment) for moment in self._between])

    def _of_files(self, path: str) -> str:
        """A row of a file is told by the file and its number. Of several files the last one is the last by its name."""
        files = f"read_parquet({text(path)}, union_by_name = true, file_row_number = true, filename = {text(FILE)})"
        ages = [f"t{at} := {age}" for at, age in enumerate(self._ages)]
        newest = f"max(struct_pack({', '.join(ages)}, f := {quoted(FILE)}, n := file_row_number))"
        keys = f"GROUP BY {', '.join(map(quoted, self._keys))}" if self._keys else ""
        return f"""
            SELECT {", ".join(f"s.{quoted(column)}" for column in self._columns)} FROM {files} s
            JOIN (SELECT {newest} AS place FROM {files} WHERE {self._there} {keys}) newest
              ON newest.place.f = s.{quoted(FILE)} AND newest.place.n = s.file_row_number"""

    def _of_table(self, table: pa.Table, db: duckdb.DuckDBPyConnection) -> str:
        db.register("source", table.append_column(ROW, pa.array(np.arange(len(table)))))
        keys = f"PARTITION BY {', '.join(map(quoted, self._keys))}" if self._keys else ""
        order = ", ".join(f"{age} DESC" for age in [*self._ages, quoted(ROW)])
        return f"""
            SELECT {", ".join(map(quoted, self._columns))} FROM source WHERE {self._there}
            QUALIFY row_number() OVER ({keys} ORDER BY {order}) = 1"""

    @property
    def _ages(self) -> list[str]:
        return [f"coalesce({quoted(time)}::TIMESTAMPTZ, TIMESTAMPTZ '-infinity')" for time in self._times]

    @property
    def _there(self) -> str:
        keys = [f"{quoted(key)} IS NOT NULL" for key in self._keys]
        return " AND ".join([f"{quoted(self._times[0])}::TIMESTAMPTZ BETWEEN $1 AND $2", *keys])


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
