from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.datasets.schema import Schema
from trainers import recipes
from trainers.batch import Batch
from trainers.bundle import MANIFEST, Bundle, BundleError, build_ranker, load
from trainers.knowledge import VectorMatrix
from trainers.rank import probabilities


def test_what_is_loaded_is_what_was_saved(bundle: Bundle, folder: Path, pull: pa.Table) -> None:
    loaded = load(folder)
    assert loaded.manifest == bundle.manifest and loaded.schema == bundle.schema
    assert not loaded.ranker.training
    before = probabilities(bundle.ranker, Batch.from_arrow(pull, bundle.encoding))
    after = probabilities(loaded.ranker, Batch.from_arrow(pull, loaded.encoding))
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])
    vectors, kept = loaded.matrices["scene_text"], bundle.matrices["scene_text"]
    assert np.array_equal(vectors.matrix, kept.matrix) and vectors.keys.equals(kept.keys)
    assert vectors.version == kept.version and np.array_equal(vectors.rows, kept.rows)


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    load(folder).save(tmp_path / "again")
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_saving_replaces_and_leaves_nothing_beside(bundle: Bundle, folder: Path) -> None:
    (folder / "old").write_text("of an earlier bundle")
    bundle.save(folder)
    assert load(folder).manifest == bundle.manifest
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


FILES = (
    "encoding.json",
    "schema.json",
    "weights.safetensors",
    "vectors/scene_text.safetensors",
    "vectors/scene_text.keys.json",
)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_and_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=rf"{name}: damaged: SHA-256"):
        load(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load(folder)


def test_a_symlink_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "encoding.json", tmp_path / "elsewhere.json")
    (folder / "encoding.json").unlink()
    (folder / "encoding.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match=r"encoding.json: absent, or not a plain file"):
        load(folder)


def test_a_surplus_file_is_named(folder: Path) -> None:
    (folder / "vectors" / "model.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(BundleError, match=r"does not name: \['vectors/model.pkl'\]"):
        load(folder)


def _set_seed(m: dict) -> None:
    m["seed"] = 2


def _set_format(m: dict) -> None:
    m["format"] = 99


def _escape(m: dict) -> None:
    m["files"]["../outside.json"] = "0" * 64


def _add_entry(m: dict) -> None:
    m["recipe"]["model"]["backbone"]["hook"] = "os.system"


def _other_backbone(m: dict) -> None:
    m["recipe"]["model"]["backbone"]["kind"] = "exec"


def _drop_seed(m: dict) -> None:
    del m["seed"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_set_seed, "damaged: its content has hash"),
        (_set_format, "format 99, this program reads format 1"),
        (_escape, "names files that no bundle has"),
        (_add_entry, r"recipe.model.backbone: unknown entries \['hook'\]"),
        (_other_backbone, "recipe.model.backbone.kind: expected one of"),
        (_drop_seed, r"missing entries \['seed'\]"),
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, edit: Callable[[dict], None], reason: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=reason):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=MANIFEST):
        load(folder)


def test_weights_of_another_shape_are_refused_with_good_hashes(
    bundle: Bundle, pull: pa.Table, pull_schema: Schema, matrices: dict[str, VectorMatrix], tmp_path: Path
) -> None:
    recipe = recipes.ple("tiny")
    other = build_ranker(recipe.model, bundle.encoding, {})
    Bundle.of(bundle.manifest, bundle.encoding, bundle.schema, other, bundle.matrices).save(tmp_path / "mixed")
    with pytest.raises(BundleError, match="the parts do not fit together"):
        load(tmp_path / "mixed")


def test_a_failed_save_leaves_the_old_bundle(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        bundle.save(folder)
    monkeypatch.undo()
    assert load(folder).manifest == bundle.manifest
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_loading_imports_no_language_model(folder: Path) -> None:
    code = (
        f"import sys; from pathlib import Path; from trainers.bundle import load; load(Path({str(folder)!r}));"
        "print([m for m in ('transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
