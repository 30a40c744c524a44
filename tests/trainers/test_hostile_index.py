"""Indexes by somebody who means harm, with hashes that are right: their FAISS files, sizes and tables of POIs."""

from __future__ import annotations

import struct
from pathlib import Path

import faiss
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from tests.trainers.sealed import put, refused, seal
from tests.trainers.test_index import POIS, artefact, unit
from trainers import index as indexes
from trainers import inert
from trainers.index import INDEX, IndexConfig, build_index


def ivf(rows: int = 40, lists: int = 4, width: int = 6) -> tuple[bytes, int, int, int]:
    made, plan = build_index(unit(rows, width), unit(3, width), IndexConfig(exact_up_to=0))
    content = faiss.serialize_index(made).tobytes()
    return content, rows, width, plan.lists


def set_index(index: Path, content: bytes) -> None:
    (index / INDEX).write_bytes(content)
    seal(index)


def made(factory: str, width: int, rows: int) -> bytes:
    built = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    vectors = unit(rows, width)
    built.train(vectors)
    built.add(vectors)
    return faiss.serialize_index(built).tobytes()


@pytest.mark.parametrize("factory", ["SQ8", "HNSW8", "PCA2,Flat", "IVF2,SQ8", "L2norm,Flat"])
def test_another_kind_of_index_is_refused_unread(index: Path, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = made(factory, artefact().tower.width, POIS)
    monkeypatch.setattr(indexes.FAISS, "deserialize_index", lambda _: pytest.fail("it was read"))
    set_index(index, content)
    refused(index, "is not an inner-product index")


def test_lists_in_another_file_are_refused_unread(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS would open the file that such an index names, wherever it lies."""
    width = artefact().tower.width
    quantizer = faiss.IndexFlatIP(width)
    lists = faiss.IndexIVFFlat(quantizer, width, 2, faiss.METRIC_INNER_PRODUCT)
    lists.train(unit(POIS, width))
    outside = faiss.OnDiskInvertedLists(2, lists.code_size, str(index.parent / "outside"))
    lists.replace_invlists(outside)
    lists.add(unit(POIS, width))
    monkeypatch.setattr(indexes.FAISS, "deserialize_index", lambda _: pytest.fail("it was read"))
    (index / INDEX).write_bytes(faiss.serialize_index(lists).tobytes())
    seal(index, lambda manifest: manifest["plan"].update(kind="ivf", lists=2))
    refused(index, "ilar")


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (4, "<i", 10**9, "vectors of 1000000000 numbers"),
        (8, "<q", 2**40, "1099511627776 vectors for 9"),
        (8, "<q", -1, "-1 vectors for 9"),
        (33, "<i", 1, "inner-product"),
        (37, "<Q", 2**40, "1099511627776"),
        (45, "<f", float("nan"), "not finite"),
    ],
)
def test_a_number_in_the_index_that_is_not_as_declared_is_refused(
    index: Path, at: int, form: str, value: float, reason: str
) -> None:
    content = bytearray((index / INDEX).read_bytes())
    struct.pack_into(form, content, at, value)
    set_index(index, bytes(content))
    refused(index, reason)


def test_an_index_that_ends_early_or_goes_on_is_refused(index: Path) -> None:
    content = (index / INDEX).read_bytes()
    for wrong, reason in (
        (content[:-1], "ends too early"),
        (content[:20], "ends too early"),
        (content + b"x", "goes on"),
    ):
        set_index(index, wrong)
        refused(index, reason)


def test_both_layouts_that_are_written_pass(tmp_path: Path) -> None:
    content, rows, width, lists = ivf()
    indexes.faiss_file.check(content, rows, width, lists)
    few = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, 30, faiss.METRIC_INNER_PRODUCT)
    few.train(unit(40, width))
    few.add(unit(40, width)[:2])
    sparse = faiss.serialize_index(few).tobytes()
    assert b"sprs" in sparse
    indexes.faiss_file.check(sparse, 2, width, 30)


def test_a_row_that_is_not_there_or_not_in_any_list_is_refused() -> None:
    content, rows, width, lists = ivf()
    last = len(content) - 8
    (row,) = struct.unpack_from("<q", content, last)
    for value, reason in ((rows, "not there"), (-1, "not there"), ((row + 1) % rows, "in no list")):
        damaged = bytearray(content)
        struct.pack_into("<q", damaged, last, value)
        with pytest.raises(indexes.faiss_file.FaissFileError, match=reason):
            indexes.faiss_file.check(bytes(damaged), rows, width, lists)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sizes.user", [10**12]),
        ("sizes.place", 10**9),
        ("tower.hidden", 10**9),
        ("tower.taste", 8000),
        ("plan.kind", "ivf"),
        ("plan.lists", 10**12),
        ("plan.probes", 0),
        ("plan.probes", 10**12),
    ],
)
def test_an_index_of_other_sizes_than_its_files_is_refused(index: Path, path: str, value: object) -> None:
    seal(index, lambda manifest: put(manifest, path, value))
    refused(index, "cannot be used")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (columns.POI_ID, pa.array(["p0"] * POIS)),
        (columns.POI_ID, pa.array([None] * POIS, pa.string())),
        (columns.POI_ID, pa.array(range(POIS))),
        (columns.POI_LATITUDE, pa.array([0] * POIS)),
        (columns.OPEN_HOURS, pa.array(["x" * 42] * POIS)),
        (columns.OPEN_HOURS, pa.array(["0" * 41] * POIS)),
        (columns.SHOWN_IN, pa.array(["search"] * POIS)),
        (columns.SHOWN_IN, pa.array([[1]] * POIS)),
        (columns.SHOWN_IN, pa.array([["search", None]] * POIS)),
        (columns.SHOWN_IN, pa.array([[b"\xff"]] * POIS).cast(pa.list_(pa.string()), safe=False)),
        ("hook", pa.array([""] * POIS)),
    ],
)
def test_pois_that_are_none_are_refused(index: Path, column: str, values: pa.Array) -> None:
    table = pq.read_table(index / "pois.parquet")
    at = table.column_names.index(column) if column in table.column_names else None
    table = table.append_column(column, values) if at is None else table.set_column(at, column, values)
    pq.write_table(table, index / "pois.parquet")
    seal(index)
    refused(index, r"pois\.parquet: cannot be used")


def test_more_scenarios_than_there_is_memory_for_are_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.array([f"p{poi}" for poi in range(1000)])
    places, hours = pa.nulls(1000, pa.float64()), pa.nulls(1000, pa.string())
    columns_of = [ids, places, places, hours, pa.array([[poi] for poi in ids.to_pylist()])]
    pq.write_table(pa.table(columns_of, schema=indexes.POI_SCHEMA), index / "pois.parquet")
    seal(index)
    for limit, reason in (
        (10**6, r"index\.faiss"),
        (10**6 - 1, r"pois\.parquet: .* 1000 scenarios of 1000 POIs are too"),
    ):
        monkeypatch.setattr(inert, "TABLE_BYTES", limit)
        refused(index, reason)
