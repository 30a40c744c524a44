"""What a model said to prompts, kept for ever by the hash of the prompt: no prompt is put to it twice.

The calls of one version (model, prompt file, pooling) are one folder of Parquet files. Each call has a number that it
keeps, from 1 on: the row of its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from trainers.knowledge import MODEL
from trainers.language.parquet import hash_of, vector_array, vectors_of, write

ASKED = "asked"  # the state from which the model would have answered


class Call(NamedTuple):
    """One prompt's vector and the state that words are read from, with the model and the time that made them."""

    vector_E: np.ndarray
    asked_E: np.ndarray
    model: str
    computed_us: int


class Calls:
    """The calls of one version, those of a run that was broken off included.

    Attributes:
        known: of each prompt's hash.
        rows: the number of each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.known: dict[str, Call] = {}
        self.rows: dict[str, int] = {}
        for path in self._files():
            table = pq.read_table(path)
            vectors = vectors_of(table[columns.VECTOR])
            asked = vectors_of(table[ASKED]) if ASKED in table.column_names else vectors
            rest = (table[name].to_pylist() for name in (MODEL, columns.COMPUTED_AT))
            self._add(
                table[columns.TEXT_HASH].to_pylist(),
                [Call(*values) for values in zip(vectors, asked, *rest, strict=True)],
                table[columns.ROW].to_pylist(),
            )

    def keep(self, prompts: Sequence[str], calls: Sequence[Call]) -> None:
        """Put new calls away; they survive whatever happens next."""
        if not prompts:
            return
        first = 1 + max(self.rows.values(), default=0)
        rows = list(range(first, first + len(prompts)))
        hashes = [hash_of(prompt) for prompt in prompts]
        write(_table(hashes, calls, rows), self._folder / f"{first:012d}.parquet")
        self._add(hashes, calls, rows)

    def close(self) -> None:
        """Many files become one. Whenever this is broken off, every call is still there once or twice."""
        files = self._files()
        if len(files) > 1:
            hashes = list(self.known)
            write(_table(hashes, [self.known[h] for h in hashes], [self.rows[h] for h in hashes]), files[0])
            for path in files[1:]:
                path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.parquet"))

    def _add(self, hashes: Sequence[str], calls: Sequence[Call], rows: Sequence[int]) -> None:
        self.known.update(zip(hashes, calls, strict=True))
        self.rows.update(zip(hashes, rows, strict=True))


def _table(hashes: Sequence[str], calls: Sequence[Call], rows: Sequence[int]) -> pa.Table:
    fields: dict[str, pa.Array] = {
        columns.ROW: pa.array(rows, pa.int64()),
        columns.TEXT_HASH: pa.array(hashes, pa.string()),
        columns.VECTOR: vector_array([call.vector_E for call in calls]),
        MODEL: pa.array([call.model for call in calls], pa.string()),
        columns.COMPUTED_AT: pa.array([call.computed_us for call in calls], pa.int64()),
    }
    # Most vectors are the states that words are read from, and stand here once.
    if not all(np.array_equal(call.vector_E, call.asked_E) for call in calls):
        fields[ASKED] = vector_array([call.asked_E for call in calls])
    return pa.table(fields)
