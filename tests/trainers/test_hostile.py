"""Artefacts by somebody who means harm, with hashes that are right: each is refused, by the error of its kind.

Whoever writes a bundle computes its hashes too, so these keep nobody out. What does is tested here: nothing is read
beyond the folder or above a size, nothing is built that the weights are not made for, and nothing is taken for what it
is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from torch import Tensor

from feature_repo import columns
from tests.trainers.test_index import POIS, artefact, unit
from trainers import bundle as bundles
from trainers import index as indexes
from trainers import inert, recipes
from trainers.bundle import Bundle, BundleError, build_ranker
from trainers.index import FILES, INDEX, IndexArtefactError, IndexConfig, build_index, save
from trainers.models.backbones.light_gcn import LightGcn

MANIFEST = "manifest.json"
WEIGHTS, VECTORS, KEYS = "weights.safetensors", "vectors/scene_text.safetensors", "vectors/scene_text.keys.json"
GIGABYTE = 2**30


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save(artefact(), tmp_path / "index")
    return tmp_path / "index"


def seal(folder: Path, edit: Callable[[dict], None] = lambda manifest: None) -> None:
    """Write a manifest whose hashes are those of the folder's files, as whoever made them would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(manifest)
    said = {name: value for name, value in manifest.items() if name != "version"}
    if folder.name == "bundle":
        said["version"] = ""
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    manifest["version"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refused(folder: Path, reason: str) -> None:
    if folder.name == "bundle":
        with pytest.raises(BundleError, match=reason):
            bundles.load(folder)
    else:
        with pytest.raises(IndexArtefactError, match=reason):
            indexes.load(folder)


def change(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = safetensors.torch.load((folder / name).read_bytes())
    (folder / name).write_bytes(safetensors.torch.save(edit(tensors)))
    seal(folder)


def test_sealing_again_changes_nothing(folder: Path, index: Path) -> None:
    seal(folder)
    seal(index)
    bundles.load(folder)
    indexes.load(index)


# Files: where they are, how large, of what kind.


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "vectors/../../outside.safetensors", "a\0b"])
def test_a_path_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.json").write_text("{}")
    seal(folder, lambda manifest: manifest["files"].update({name: "0" * 64}))
    refused(folder, "names files that no bundle has")


def test_links_are_refused_wherever_they_stand(folder: Path, index: Path, tmp_path: Path) -> None:
    shutil.move(folder / "vectors", tmp_path / "vectors")
    (folder / "vectors").symlink_to(tmp_path / "vectors")
    refused(folder, "a folder that is a link")
    for place, name in ((folder, MANIFEST), (index, MANIFEST), (index, INDEX)):
        shutil.move(place / name, tmp_path / "elsewhere")
        (place / name).symlink_to(tmp_path / "elsewhere")
        refused(place, rf"{name}: absent, or not a plain file")
        os.replace(tmp_path / "elsewhere", place / name)


@pytest.mark.parametrize("name", [MANIFEST, "encoding.json", WEIGHTS])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, rf"{name}: absent, or not a plain file")


def test_a_file_above_its_limit_is_not_read(folder: Path, index: Path) -> None:
    for place, names in ((folder, (VECTORS, "encoding.json", MANIFEST)), (index, (*FILES[::-1],))):
        for name in names:
            with (place / name).open("r+b") as file:
                file.truncate(2**40)  # of holes: it takes no room
            refused(place, rf"{name}: has 1099511627776 bytes, at most")


def test_a_pickle_by_another_name_is_not_run(folder: Path, index: Path, tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for place, name in ((folder, WEIGHTS), (folder, VECTORS), (index, "query.safetensors"), (index, INDEX)):
        kept = (place / name).read_bytes()
        torch.save({"weight": torch.zeros(2), "hook": Run()}, tmp_path / "zip")
        for content in (pickle.dumps(Run()), (tmp_path / "zip").read_bytes()):
            (place / name).write_bytes(content)
            seal(place)
            refused(place, name)
        (place / name).write_bytes(kept)
        seal(place)
    assert not (tmp_path / "ran").exists()


# JSON


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("name", ["encoding.json", "schema.json", KEYS])
@pytest.mark.parametrize("text", [nested(100_000), "[]", "null", "1e999", "NaN", '{"a": NaN}', b"\xff\xfe\x00"])
def test_json_of_another_kind_is_refused(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    seal(folder)
    refused(folder, "do not fit together")


def test_a_manifest_that_is_nested_without_end_is_refused(folder: Path, index: Path) -> None:
    for place in (folder, index):
        plain = json.loads((place / MANIFEST).read_text())
        text = json.dumps({**plain, "metrics": {"deep": 0}})
        for depth in (900, 100_000):  # the first one is read, and too deep for what comes then
            (place / MANIFEST).write_text(text.replace('"deep": 0', f'"deep": {nested(depth)}'))
            refused(place, MANIFEST)


def set_encoding(folder: Path, **changed: object) -> None:
    plain = json.loads((folder / "encoding.json").read_text())
    (folder / "encoding.json").write_text(json.dumps({**plain, **changed}))
    seal(folder)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hook": "os.system"}, r"unknown entries \['hook'\]"),
        ({"timezone": "../../../etc/passwd"}, "passwd"),
        ({"timezone": 5}, "expected str"),
        ({"rates": [0.1]}, "two rates"),
        ({"rates": [0.1, "0.1"]}, "expected float"),
        ({"near_km": 0.0}, "near_km > 0"),
        ({"near_km": 10**400}, "too large"),
        ({"scalers": {"log_distance_km": [0.0, 0.0, 0.0, 1.0]}}, "a deviation > 0"),
        ({"scalers": {"log_distance_km": [0.0, 1.0]}}, "a lowest and a highest"),
        ({"scalers": {"log_distance_km": [0.0, 1.0, 2.0, 1.0]}}, "a lowest and a highest"),
        ({"user_columns": "user_id"}, "expected a list"),
        ({"vocabularies": {}}, "columns without a vocabulary"),
        ({"vocabularies": {"user_id": [1]}}, "must be a list of texts"),
        ({"vocabularies": {"user_id": ["a", "a"]}}, "a value twice"),
        ({"vocabularies": {"user_id": ["\ud800"]}}, "surrogates"),
    ],
)
def test_an_encoding_that_is_none_is_refused(folder: Path, changed: dict, reason: str) -> None:
    set_encoding(folder, **changed)
    refused(folder, reason)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("timezone", "/etc/passwd"), ("window_days", [10**9, 1]), ("request_fields", [{"name": 1}]), ("hook", "x")],
)
def test_a_schema_that_is_none_is_refused(folder: Path, entry: str, value: object) -> None:
    plain = json.loads((folder / "schema.json").read_text())
    (folder / "schema.json").write_text(json.dumps({**plain, entry: value}))
    seal(folder)
    refused(folder, "do not fit together")


def put(manifest: dict, path: str, value: object) -> None:
    *way, last = path.split(".")
    for name in way:
        manifest = manifest[name]
    manifest[last] = value


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("recipe.model.features.width", 10**9, r"recipe.model.features.width: is 1000000000; a network's sizes"),
        ("recipe.model.backbone.levels", 10**9, r"recipe.model.backbone.levels: is 1000000000"),
        ("recipe.model.backbone.expert_widths", [16, 10**12], r"expert_widths\[1\]: is 1000000000000"),
        ("recipe.model.features.width", -1, "is -1"),
        ("recipe.model.features.width", 8191, "tensor .* needed is"),  # allowed, and not what the weights are made for
        ("recipe.model.backbone.task_experts", 8191, "tensor .* needed is"),
        ("recipe.model.features.dropout", 10**400, "too large"),
        ("recipe.fit.epochs", 0, "must be positive"),
        ("trained_until", "yesterday", "Invalid isoformat"),
        ("seed", True, "expected int"),
        ("hook", "x", r"unknown entries \['hook'\]"),
    ],
)
def test_a_manifest_of_sizes_that_no_network_has_is_refused(
    folder: Path, path: str, value: object, reason: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seal(folder, lambda manifest: put(manifest, path, value))
    refused(folder, reason)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE / 1024, "memory was taken for it"


# Tensors


def of_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("name", [WEIGHTS, VECTORS])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        of_header(json.dumps({"matrix": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()),
        of_header(json.dumps({"matrix": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}).encode()),
        of_header(json.dumps({"matrix": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}).encode()),
        of_header(json.dumps({"matrix": {"dtype": "PICKLE", "shape": [0], "data_offsets": [0, 0]}}).encode()),
        of_header(nested(100_000).encode()),
        of_header(b"{}"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    seal(folder)
    refused(folder, rf"{name}: (is no safetensors file|holds unknown tensors|tensor)")


def with_entry(value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def edit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = max(tensors, key=lambda one: tensors[one].numel() * tensors[one].is_floating_point())
        tensors[name].view(-1)[-1] = value
        return tensors

    return edit


BROKEN_TENSORS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "float64": lambda tensors: {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()},
    "float16": lambda tensors: {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()},
    "int": lambda tensors: {n: t.int() for n, t in tensors.items()},
    "flat": lambda tensors: {n: t.flatten() for n, t in tensors.items()},
    "longer": lambda tensors: {n: torch.cat([t, t]) if t.dim() else t for n, t in tensors.items()},
    "surplus": lambda tensors: {**tensors, "hook": torch.zeros(1)},
    "missing": lambda tensors: dict(list(tensors.items())[1:]),
    "nan": with_entry(torch.nan),
    "inf": with_entry(torch.inf),
}


@pytest.mark.parametrize("how", BROKEN_TENSORS)
@pytest.mark.parametrize("name", [WEIGHTS, VECTORS, "query.safetensors"])
def test_tensors_that_are_not_those_declared_are_refused(folder: Path, index: Path, name: str, how: str) -> None:
    place = index if name == "query.safetensors" else folder
    change(place, name, BROKEN_TENSORS[how])
    refused(place, rf"{name}: .*(tensor|holds)")


def set_(name: str, at: int, value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def edit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name][at] = value
        return tensors

    return edit


@pytest.mark.parametrize("row", [0, -1, 2**40])
def test_a_record_that_points_to_no_row_is_refused(folder: Path, row: int) -> None:
    change(folder, VECTORS, set_("rows", 3, row))
    refused(folder, "every record point to a row")


def test_a_missing_row_that_says_something_is_refused(folder: Path) -> None:
    change(folder, VECTORS, set_("matrix", 0, 1.0))
    refused(folder, "row 0 must be zeros")


def test_edges_beyond_the_graph_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    recipe = recipes.on_backbone(recipes.ple("tiny"), LightGcn.Config(width=8, layer_widths=(16,), tower_widths=(8,)))
    ranker = build_ranker(recipe.model, bundle.encoding, {})
    assert isinstance(ranker.backbone, LightGcn)
    ranker.backbone.edge_M = torch.tensor([0, 5])
    manifest = {**vars(bundle.manifest), "recipe": recipe, "knowledge_versions": {}}
    Bundle.of(bundles.Manifest(**manifest), bundle.encoding, bundle.schema, ranker, {}).save(tmp_path / "bundle")
    assert bundles.load(tmp_path / "bundle").ranker.state_dict()["backbone.edge_M"].tolist() == [0, 5]
    for edges in ([-1, 5], [5, 5], [0, 2**40]):

        def edit(tensors: dict[str, Tensor], edges: list[int] = edges) -> dict[str, Tensor]:
            return {**tensors, "backbone.edge_M": torch.tensor(edges)}

        change(tmp_path / "bundle", WEIGHTS, edit)
        refused(tmp_path / "bundle", "edges must ascend")


# The index


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


DAMAGE = """
import random, sys
from pathlib import Path
from tests.serving.fuzzed import damaged
from tests.trainers.test_hostile import seal
from trainers import bundle, index

folder, load, error = Path(sys.argv[1]), *{
    "bundle": (bundle.load, bundle.BundleError), "index": (index.load, index.IndexArtefactError)
}[Path(sys.argv[1]).name]
draw, taken = random.Random(sys.argv[2]), 0
names = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
for _ in range(int(sys.argv[2])):
    name = draw.choice(names)
    whole = name.read_bytes()
    name.write_bytes(damaged(whole, draw))
    seal(folder)
    try:
        load(folder)
        taken += 1
    except error:
        pass
    name.write_bytes(whole)
print("alive", taken)
"""


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("kind", ["bundle", "index"])
def test_any_damage_under_good_hashes_is_refused_or_taken_and_nothing_crashes(
    folder: Path, index: Path, kind: str, count: int
) -> None:
    place = {"bundle": folder, "index": index}[kind]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", DAMAGE, str(place), str(count)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("alive"), done.stderr


def test_limits_leave_room_for_what_is_written() -> None:
    """A million POIs of 384 numbers, and as many users."""
    assert inert.TABLE_BYTES > 4 * 384 * 10**6 and inert.JSON_BYTES > 2 * 10**6 * 40
