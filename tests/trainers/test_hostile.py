"""Artefacts by somebody who means harm, with hashes that are right: each is refused, by the error of its kind.

Whoever writes a bundle computes its hashes too, so these keep nobody out. What does is tested here: nothing is read
beyond the folder or above a size, nothing is built that the weights are not made for, and nothing is taken for what it
is not.
"""

from __future__ import annotations

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

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.trainers.sealed import MANIFEST, put, refused, seal
from trainers import bundle as bundles
from trainers import index as indexes
from trainers import inert, recipes
from trainers.bundle import Bundle, build_ranker
from trainers.index import FILES, INDEX
from trainers.models.backbones.light_gcn import LightGcn

WEIGHTS, VECTORS, KEYS = "weights.safetensors", "vectors/scene_text.safetensors", "vectors/scene_text.keys.json"
GIGABYTE = 2**30


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


DAMAGE = """
import random, sys
from pathlib import Path
from tests.serving.fuzzed import damaged
from tests.trainers.sealed import seal
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
