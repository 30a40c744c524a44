"""Two versions of knowledge served side by side: a bundle goes on with its vectors while one on new vectors serves."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.store import online_views, open_store
from serving.features import FeatureReader
from serving.opening import open_pipeline
from serving.request import RequestContext
from trainers import bundle as bundles
from trainers.knowledge import load_matrix, served_from


class Migrated(NamedTuple):
    """A city whose texts were read by another encoder while a bundle of the first one served."""

    project: Any
    old: str  # version of POIs' texts
    printed: str

    @property
    def workspace(self) -> Any:
        return self.project.workspace

    def bundle(self, name: str) -> Path:
        folder: Path = self.workspace.bundles / name
        return folder


@pytest.fixture(scope="module")
def migrated(project_in: Callable[[Path], Any], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Migrated:
    project = project_in(tmp_path_factory.mktemp("versions") / "city")
    workspace = project.workspace
    embed = ("embed", "--language-model", str(tiny_model))
    train = ("train", "--model", "larr", "--recipe", "tiny")
    city = ("data", "city", "--users", "20", "--days", "14", "--pois", "30")
    project.verbs(city, embed, ("apply",), train, ("materialize",))
    old = load_matrix(served_from(workspace, "poi_text")).version
    shutil.copytree(workspace.bundles / "larr", workspace.bundles / "before")
    beside, other = (*embed, "--beside"), (*embed, "--unit-length")
    proofs = (("prove", "--bundle", name, "--impressions", "60") for name in ("larr", "before"))
    printed = project.verbs(
        beside, other, ("apply",), train, ("materialize",), *proofs, ("knowledge", "status"), ("freshness",)
    )
    return Migrated(project, old, printed)


def test_each_bundle_reads_the_vectors_that_it_was_trained_on(migrated: Migrated) -> None:
    store = open_store(migrated.workspace)
    schema = Schema.load(migrated.workspace.schema)
    pois = pq.read_table(migrated.workspace.source("pois"))[columns.POI_ID].to_pylist()
    context = RequestContext(
        user_id="u1", scenario_id="lunch_deals", time_us=int(schema.split.end.timestamp() * 1e6), place=None,
        scene_inputs={"weather": "rain"},
    )  # fmt: skip
    lengths = {}
    for name in ("before", "larr"):
        bundle = bundles.load(migrated.bundle(name))
        reader = FeatureReader(store, bundle)
        read = reader.read_context(context, context.time_us)
        rows = reader.read_pois(read, pois).table["poi_text_row"].to_numpy()
        file = served_from(migrated.workspace, "poi_text", migrated.old if name == "before" else None)
        known = load_matrix(file)
        assert known.version == bundle.manifest.knowledge_versions["poi_text"]
        expected = known.rows_at(pois, np.full(len(pois), context.time_us))
        assert (rows == expected).all() and (rows > 0).all()
        lengths[name] = np.linalg.norm(bundle.matrices["poi_text"].matrix[rows], axis=1)
        assert any(aspect.has_vector for aspect in read.scene)
    assert np.allclose(lengths["larr"], 1, atol=1e-5) and not np.allclose(lengths["before"], 1, atol=1e-2)


def test_both_are_proven_and_shown(migrated: Migrated) -> None:
    words = " ".join(migrated.printed.split())
    assert words.count("all agree") == 2
    assert "poi_text, beside" in words and migrated.old in words
    assert f"poi_text_{migrated.old}"[:20] in words  # by `freshness`, perhaps cut
    for name in ("before", "larr"):
        with_proof = open_pipeline(migrated.workspace, migrated.bundle(name), None)
        assert with_proof.proven
        with_proof.close()


def test_a_version_is_one_wherever_it_is_served(migrated: Migrated, tiny_model: Path) -> None:
    workspace = migrated.workspace
    name = f"{migrated.old}.parquet"
    old = (workspace.knowledge / "poi_text" / name, workspace.beside / f"poi_text_{name}")
    pois = pq.read_table(workspace.source("pois"))
    at = pois.column_names.index(columns.NAME)
    renamed = pois.set_column(at, columns.NAME, [["Another name", *pois[columns.NAME].to_pylist()[1:]]])
    pq.write_table(renamed, workspace.source("pois"))
    migrated.project.verbs(("embed", "--language-model", str(tiny_model)))  # in use again, and still beside
    assert old[0].samefile(old[1]) and old[0].samefile(served_from(workspace, "poi_text"))
    pq.write_table(pois, workspace.source("pois"))
    migrated.project.verbs(("embed", "--language-model", str(tiny_model), "--beside"))
    assert old[0].samefile(old[1]) and old[0].samefile(served_from(workspace, "poi_text"))
    migrated.project.verbs(("embed", "--language-model", str(tiny_model), "--unit-length"))
    assert not old[0].samefile(served_from(workspace, "poi_text"))


def test_a_version_that_is_dropped_is_gone_and_its_bundle_refused(migrated: Migrated) -> None:
    workspace = migrated.workspace
    wrong = migrated.project.scenerank("knowledge", "drop", "nothing", check=False)
    assert wrong.returncode == 2 and migrated.old in wrong.stderr + wrong.stdout
    versions = {path.stem.rpartition("_")[2] for path in workspace.beside.iterdir()}
    migrated.project.verbs(*(("knowledge", "drop", version) for version in sorted(versions)))
    assert list(workspace.beside.iterdir()) == []
    assert not [view for view in online_views(open_store(workspace)) if migrated.old in view]
    with sqlite3.connect(workspace.root / "online.db") as online:
        tables = [name for (name,) in online.execute("SELECT name FROM sqlite_master")]
    assert any("poi_text" in name for name in tables) and not [name for name in tables if migrated.old in name]
    assert (workspace.knowledge / "poi_text" / f"{migrated.old}.parquet").is_file()
    refused = migrated.project.scenerank("serve", "--bundle", "before", check=False)
    assert refused.returncode != 0 and "--beside" in " ".join((refused.stderr + refused.stdout).split())
    open_pipeline(workspace, migrated.bundle("larr"), None).close()


def test_the_version_in_use_is_served_though_another_one_is_newer(migrated: Migrated) -> None:
    """A tuned model's vectors are dated at the end of what it was tuned on; an untuned one's are older."""
    workspace = migrated.workspace
    path = served_from(workspace, "poi_text")
    table = pq.read_table(path)
    older = table
    for name in (columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP):
        at = table.column_names.index(name)
        older = older.set_column(at, name, pc.subtract(table[name], pa.scalar(timedelta(days=1))))
    name = columns.knowledge("poi_text", columns.VERSION)
    older = older.set_column(table.column_names.index(name), name, pa.array(["another"] * len(table)))
    path.unlink()  # it may be one file with others
    pq.write_table(older, path)
    migrated.project.verbs(("materialize",))
    answer = open_store(workspace).get_online_features(
        features=[f"poi_text:{name}"],
        entity_rows=[{columns.POI_ID: poi} for poi in table[columns.POI_ID].to_pylist()],
    )
    assert set(answer.to_dict()[name]) == {"another"}
