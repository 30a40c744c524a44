"""Vectors that a language model left in a knowledge file, as one matrix to look rows up in (numpy and Arrow only).

A knowledge file (`trainers.language.embed` or `.prompted` writes it) holds one vector space: texts of one kind, read by
one version of one encoder. Training sets and requests carry row numbers of its matrix, never vectors. Row 0 is
"missing" and all zeros; other rows never change their meaning within a version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.workspace import Workspace

MISSING_ROW = 0
# The space that scene slots point into; the others describe the impression itself.
SCENE_SPACE = next(space for space, key in columns.KNOWLEDGE.items() if key == columns.SCENE_VALUE)
POI_SPACE, USER_SPACE = "poi_text", "user_text"
USER_KNOWLEDGE, SCENARIO_KNOWLEDGE = "user_knowledge", "scenario_knowledge"
MODEL = "model"  # the field of a knowledge view that says which model wrote a vector


class KnowledgeError(ValueError):
    """A knowledge file cannot be used. The message names the file, what is wrong and the remedy."""


@dataclass(frozen=True, kw_only=True)
class VectorMatrix:
    """One vector space. N records say from when on a key has a row; several may point to the same row.

    Args:
        space: name of the vector space, one of `columns.SPACES`.
        version: the encoder's version; rows of different versions are never comparable.
        matrix: float32 (rows + 1, width), raw vectors; row 0 is zeros.
        keys: N external ids or scene values.
        rows: int64 (N,), 1 .. rows.
        available_at: int64 (N,), microseconds since the epoch UTC.
    """

    space: str
    version: str
    matrix: np.ndarray
    keys: pa.Array
    rows: np.ndarray
    available_at: np.ndarray

    def rows_at(self, keys: pa.Array | pa.ChunkedArray | list[str | None], times: np.ndarray) -> np.ndarray:
        """The row of each key as of its time: int64 (n,), `MISSING_ROW` where nothing was available yet.

        Args:
            keys: n external ids; None and unknown ones are missing.
            times: int64 (n,), microseconds since the epoch UTC. A value available at exactly that time counts.
        """
        known = self._lookup
        wanted = pc.fill_null(pc.index_in(_strings(keys), value_set=known.keys), -1)
        key_code = wanted.to_numpy(zero_copy_only=False).astype(np.int64)
        time_code = np.searchsorted(known.times, np.asarray(times, dtype=np.int64), side="right")
        # The record before the insertion point is the newest that is not after; it may be another key's.
        at = np.searchsorted(known.codes, key_code * known.stride + time_code, side="right") - 1
        found = (at >= 0) & (known.codes[at] // known.stride == key_code)
        return np.where(found, known.rows[at], MISSING_ROW)

    @cached_property
    def _lookup(self) -> _Lookup:
        keys = pc.unique(self.keys)
        times, time_index = np.unique(self.available_at, return_inverse=True)
        stride = len(times) + 1
        key_code = pc.index_in(self.keys, value_set=keys).to_numpy(zero_copy_only=False).astype(np.int64)
        codes = key_code * stride + time_index + 1
        order = np.argsort(codes, kind="stable")
        return _Lookup(keys=keys, times=times, stride=stride, codes=codes[order], rows=self.rows[order])


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """Records sorted by (key, time), the pair folded into one integer: key code * stride + time code."""

    keys: pa.Array
    times: np.ndarray
    stride: int
    codes: np.ndarray
    rows: np.ndarray


def served_from(workspace: Workspace, space: str, beside: str | None = None) -> Path:
    """The knowledge file of the version in use, or of a version that is served beside it."""
    if beside is None:
        return workspace.knowledge / f"{space}.parquet"
    return workspace.beside / f"{columns.beside(space, beside)}.parquet"


def load_matrix(path: Path) -> VectorMatrix:
    """Read one knowledge file. Raises KnowledgeError if it is absent, of no known space, or mixes versions."""
    _require(path)
    names = pq.read_schema(path).names
    space = next((s for s in columns.SPACES if columns.knowledge(s, columns.VECTOR) in names), None)
    if space is None:
        raise KnowledgeError(f"{path}: no vector column of {list(columns.SPACES)} in {names}; embed the texts again")
    key, row, version, vector = (
        columns.SPACES[space],
        columns.knowledge(space, columns.ROW),
        columns.knowledge(space, columns.VERSION),
        columns.knowledge(space, columns.VECTOR),
    )
    table = pq.read_table(path, columns=[key, columns.CREATED_TIMESTAMP, row, version, vector])
    rows = table[row].to_numpy()
    return VectorMatrix(
        space=space,
        version=one_version(table[version], path),
        matrix=_matrix(rows, table[vector], path),
        keys=_strings(table[key]),
        rows=rows,
        available_at=table[columns.CREATED_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(),
    )


def _require(path: Path) -> None:
    if not path.is_file():
        raise KnowledgeError(f"{path}: no such knowledge file; embed the texts first")


def version_in(path: Path, space: str) -> str:
    """The version of a knowledge file of this space. Raises KnowledgeError if it is absent or mixes versions."""
    _require(path)
    name = columns.knowledge(space, columns.VERSION)
    return one_version(pq.read_table(path, columns=[name])[name], path)


def one_version(versions: pa.ChunkedArray, path: Path) -> str:
    """The version of all rows of a knowledge file. Raises KnowledgeError where there are several, or none."""
    found: list[str] = pc.unique(versions).to_pylist()
    if len(found) != 1:
        raise KnowledgeError(f"{path}: vectors of one version expected, found {found}; embed the texts again")
    return found[0]


def _matrix(rows: np.ndarray, vectors: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Scatter n list<float32> vectors to their rows: float32 (max(rows) + 1, width)."""
    widths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    if len(widths) != 1 or not widths[0] or rows.min() <= MISSING_ROW:
        raise KnowledgeError(f"{path}: vectors of one width and rows >= 1 expected, found widths {widths}; embed again")
    matrix = np.zeros((int(rows.max()) + 1, widths[0]), dtype=np.float32)
    start = 0
    for chunk in vectors.chunks:
        matrix[rows[start : start + len(chunk)]] = chunk.flatten().to_numpy().reshape(len(chunk), -1)
        start += len(chunk)
    return matrix


def _strings(values: pa.Array | pa.ChunkedArray | list[str | None]) -> pa.Array:
    """Any array of strings as one plain Arrow array."""
    if isinstance(values, list):
        return pa.array(values, pa.string())
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return flat.cast(pa.string())
