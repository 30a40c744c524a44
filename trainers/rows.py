"""Rows: named columns of n rows, of which those that all rows share hold one value only.

A pull has n values in every column. A request has one user, one moment and n places: what belongs to the user or the
moment is decoded, derived and encoded once, by the same functions, and spread over the rows last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """n rows; every column has n values, or one that all rows share."""

    columns: Mapping[str, pa.Array | pa.ChunkedArray]
    count: int

    @staticmethod
    def of(table: pa.Table | Rows) -> Rows:
        """The rows of a table."""
        return table if isinstance(table, Rows) else Rows(dict(zip(table.column_names, table, strict=True)), len(table))

    @property
    def column_names(self) -> Sequence[str]:
        return tuple(self.columns)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, name: str) -> pa.Array:
        """n values, or one. Raises KeyError for a column that is not there."""
        array = self.columns[name]
        return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array

    def spread(self, name: str) -> pa.Array:
        """n values. Raises KeyError for a column that is not there."""
        array = self[name]
        return array if len(array) == self.count else array.take(pa.array(np.zeros(self.count, dtype=np.int64)))

    def table(self) -> pa.Table:
        """Every value of every row written out."""
        return pa.table({name: self.spread(name) for name in self.columns})
