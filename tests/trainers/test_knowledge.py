"""Rows as of a time, against answers worked out by hand and against the obvious loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import columns
from trainers.knowledge import KnowledgeError, VectorMatrix, load_matrix


def matrix(records: list[tuple[str, int, int]]) -> VectorMatrix:
    """Records are (key, available_at, row)."""
    return VectorMatrix(
        space="poi_text",
        version="v",
        matrix=np.zeros((10, 2), np.float32),
        keys=pa.array([k for k, _, _ in records], pa.string()),
        rows=np.array([r for _, _, r in records], np.int64),
        available_at=np.array([t for _, t, _ in records], np.int64),
    )


def test_rows_at_is_the_newest_available_row_of_the_key() -> None:
    known = matrix([("b", 50, 2), ("a", 100, 1), ("a", 200, 3), ("b", 300, 2)])
    asked = [("a", 99, 0), ("a", 100, 1), ("a", 199, 1), ("a", 200, 3), ("a", 10**15, 3), ("b", 49, 0), ("b", 50, 2)]
    keys, times, rows = zip(*asked, strict=True)
    assert known.rows_at(list(keys), np.array(times)).tolist() == list(rows)


def test_unknown_and_missing_keys_are_row_zero() -> None:
    known = matrix([("a", 100, 1)])
    assert known.rows_at(["z", None, "a"], np.array([500, 500, 500])).tolist() == [0, 0, 1]
    assert known.rows_at([], np.array([], np.int64)).tolist() == []


record = st.tuples(st.sampled_from("abc"), st.integers(0, 6))
query = st.tuples(st.sampled_from([*"abcz", None]), st.integers(-1, 8))


@given(st.lists(record, min_size=1, max_size=12, unique=True), st.lists(query, max_size=12))
def test_rows_at_equals_the_obvious_loop(records: list[tuple[str, int]], queries: list[tuple[str | None, int]]) -> None:
    rows = [(key, time, row) for row, (key, time) in enumerate(records, start=1)]
    expected = [max(((t, r) for k, t, r in rows if k == key and t <= time), default=(0, 0))[1] for key, time in queries]
    found = matrix(rows).rows_at(pa.chunked_array([pa.array([k for k, _ in queries], pa.string())]), _times(queries))
    assert found.tolist() == expected


def _times(queries: list[tuple[str | None, int]]) -> np.ndarray:
    return np.array([t for _, t in queries], np.int64)


def knowledge_file(path: Path, versions: list[str], rows: list[int], vectors: list[list[float]]) -> Path:
    clock = pa.array([7, 8], pa.timestamp("us", tz="UTC"))
    table = {
        columns.POI_ID: ["a", "b"],
        columns.CREATED_TIMESTAMP: clock,
        "poi_text_row": pa.array(rows, pa.int64()),
        "poi_text_version": versions,
        "poi_text_vector": pa.array(vectors, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), path)
    return path


def test_load_scatters_vectors_to_their_rows(tmp_path: Path) -> None:
    loaded = load_matrix(knowledge_file(tmp_path / "f.parquet", ["v", "v"], [3, 1], [[1.0, 2.0], [3.0, 4.0]]))
    assert loaded.matrix.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]
    assert (loaded.space, loaded.version) == ("poi_text", "v")
    assert loaded.rows_at(["a", "b"], np.array([7, 7])).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("versions", "rows", "vectors", "message"),
    [
        (["v", "w"], [1, 2], [[1.0], [1.0]], "one version"),
        (["v", "v"], [0, 1], [[1.0], [1.0]], "rows >= 1"),
        (["v", "v"], [1, 2], [[1.0], [1.0, 2.0]], "one width"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, versions: list[str], rows: list[int], vectors: list[list[float]], message: str
) -> None:
    path = knowledge_file(tmp_path / "f.parquet", versions, rows, vectors)
    with pytest.raises(KnowledgeError, match=rf"f\.parquet.*{message}"):
        load_matrix(path)


def test_absent_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="no such knowledge file"):
        load_matrix(tmp_path / "none.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(KnowledgeError, match="no vector column"):
        load_matrix(tmp_path / "x.parquet")
