"""Vectors that come while a bundle is served: taken up where all that was known stays, refused where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from serving.features import FeatureReader
from serving.newcomers import Newcomers
from serving.pipeline import Pipeline
from serving.request import RequestContext
from trainers import bundle as bundles
from trainers import wanted
from trainers.bundle import Bundle
from trainers.knowledge import load_matrix
from trainers.wanted import WantedList

SPACE = "scene_text"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def bundle(workspace: Workspace) -> Bundle:
    return bundles.load(workspace.bundles / "larr")


@pytest.fixture
def file(workspace: Workspace, tmp_path: Path) -> Path:
    """A copy of the knowledge file that the bundle's vectors came from."""
    copy = tmp_path / "scene_text.parquet"
    copy.write_bytes((workspace.knowledge / "scene_text.parquet").read_bytes())
    return copy


def looking(bundle: Bundle, file: Path) -> Newcomers:
    return Newcomers(bundle, {SPACE: file}, WantedList(Workspace(file.parent), [SPACE]))


def replaced(table: pa.Table, field: str, value: object) -> pa.Table:
    """One value of the first row changed."""
    name = columns.knowledge(SPACE, field) if field != columns.SCENE_VALUE else field
    values = table[name].to_pylist()
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array([value, *values[1:]], table.schema.field(at).type))


def longer(table: pa.Table) -> pa.Table:
    """With one more value, on the next row."""
    row = len(load_rows(table)) + 1
    new = replaced(replaced(table.slice(0, 1), columns.ROW, row), columns.SCENE_VALUE, "weather=hail")
    return pa.concat_tables([table, replaced(new, columns.VECTOR, [2.0] * width(table))])


def load_rows(table: pa.Table) -> set[int]:
    return set(table[columns.knowledge(SPACE, columns.ROW)].to_pylist())


def width(table: pa.Table) -> int:
    return len(table[columns.knowledge(SPACE, columns.VECTOR)][0])


def of_another_version(table: pa.Table) -> pa.Table:
    name = columns.knowledge(SPACE, columns.VERSION)
    return table.set_column(table.column_names.index(name), name, pa.array(["v2"] * len(table)))


def with_a_changed_row(table: pa.Table) -> pa.Table:
    return replaced(longer(table), columns.VECTOR, [9.0] * width(table))


def test_new_rows_are_taken_up_and_only_once(bundle: Bundle, file: Path) -> None:
    newcomers, known = looking(bundle, file), len(bundle.matrices[SPACE].matrix)
    newcomers.look()
    assert bundle.ranker.vectors_known(SPACE) == known
    pq.write_table(longer(pq.read_table(file)), file)
    newcomers.look()
    newcomers.look()
    assert bundle.ranker.vectors_known(SPACE) == known + 1
    assert bundle.ranker.scene is not None and bundle.ranker.scene.encoder.vectors is not None
    assert np.array_equal(bundle.ranker.scene.encoder.vectors.matrix.numpy(), load_matrix(file).matrix)


@pytest.mark.parametrize("change", [of_another_version, with_a_changed_row])
def test_nothing_is_taken_up_that_speaks_of_other_vectors(
    bundle: Bundle, file: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    newcomers, known = looking(bundle, file), len(bundle.matrices[SPACE].matrix)
    pq.write_table(change(longer(pq.read_table(file))), file)
    newcomers.look()
    assert bundle.ranker.vectors_known(SPACE) == known
    assert ("rows that the bundle knows have changed" in caplog.text) is (change is with_a_changed_row)


def test_a_file_that_is_none_is_looked_at_again(bundle: Bundle, file: Path) -> None:
    newcomers, whole = looking(bundle, file), pq.read_table(file)
    known = len(bundle.matrices[SPACE].matrix)
    newcomers._every_s = 0.05
    file.write_bytes(b"half a file")
    newcomers.start()
    newcomers._ending.wait(0.3)
    pq.write_table(longer(whole), file.with_suffix(".staging"))
    file.with_suffix(".staging").replace(file)
    end = time.monotonic() + 20
    while bundle.ranker.vectors_known(SPACE) == known and time.monotonic() < end:
        time.sleep(0.05)
    newcomers.close()
    assert bundle.ranker.vectors_known(SPACE) == known + 1


def test_known_users_and_places_without_a_row_are_wanted_and_strangers_are_not(
    workspace: Workspace,
    pipeline: Pipeline,
    moment: datetime,
    poi_ids: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = Workspace(tmp_path)
    spaces = pipeline.bundle.manifest.knowledge_versions
    newcomers = Newcomers(pipeline.bundle, dict.fromkeys(spaces, tmp_path / "none"), WantedList(elsewhere, spaces))
    reader = FeatureReader(open_store(workspace), pipeline.bundle)
    newest = pipeline.bundle.ranker.vectors_known("poi_text") - 1
    for space, known in (("poi_text", newest), ("user_text", 1)):  # as if the last POI and all users came later
        monkeypatch.setitem(pipeline.bundle.ranker._known, space, known)
    for user_id in ("u3", "nobody"):
        context = RequestContext(
            user_id=user_id, scenario_id="home_feed", time_us=int(moment.timestamp() * 1e6), place=None,
            scene_inputs={"weather": "hail"},
        )  # fmt: skip
        found = reader.read_context(context, context.time_us or 0)
        newcomers.answered(context, found, reader.read_pois(found, [*poi_ids, "nowhere"]))
    newcomers.close()
    vectors = load_matrix(workspace.knowledge / "poi_text.parquet")
    (last,) = [key for key, row in zip(vectors.keys.to_pylist(), vectors.rows, strict=True) if row == newest]
    assert set(wanted.read(elsewhere, "poi_text")) == {last}
    assert set(wanted.read(elsewhere, "user_text")) == {"u3"}
    assert set(wanted.read(elsewhere, "scene_text")) == {"weather=hail"}
    assert wanted.read(elsewhere, "scenario_text") == {}
