"""Who has vectors: counted by hand from the knowledge files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from serving import coverage
from serving.coverage import Coverage


@pytest.fixture(scope="module")
def end(city) -> datetime:
    return Schema.load(city.workspace.schema).split.end


def by_space(workspace: Workspace, at: datetime) -> dict[str, Coverage]:
    return {one.space: one for one in coverage.measure(workspace, at)}


def test_everything_that_was_embedded_is_covered_and_what_was_not_asked_is_not(city, end):
    found = by_space(city.workspace, end)
    assert list(found) == list(columns.SPACES)
    pois = found["poi_text"]
    assert pois.share == 1.0 and pois.known == pq.read_metadata(city.workspace.source("pois")).num_rows
    assert pois.model and pois.version and 0 < pois.texts <= pois.entities
    assert found["scene_text"].known is None and found["scene_text"].entities > 100
    nothing = found["user_knowledge"]
    assert (nothing.model, nothing.entities, nothing.share, nothing.newest_s) == ("", 0, 0.0, None)


def test_what_became_known_later_is_not_counted(city, end, tmp_path):
    workspace = copied(city.workspace, tmp_path)
    path = workspace.knowledge / "poi_text.parquet"
    table = pq.read_table(path)
    when = [end.replace(year=2013), *table[columns.CREATED_TIMESTAMP].to_pylist()[1:]]
    at = table.schema.get_field_index(columns.CREATED_TIMESTAMP)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(when, table.schema.field(at).type)), path)
    pois = by_space(workspace, end)["poi_text"]
    assert pois.known is not None and pois.entities == pois.known - 1
    ages = sorted((end - moment).total_seconds() for moment in when[1:])
    assert pois.newest_s == pytest.approx(ages[0])
    assert pois.median_s == pytest.approx((ages[(len(ages) - 1) // 2] + ages[len(ages) // 2]) / 2)


def copied(workspace: Workspace, root: Path) -> Workspace:
    """The same sources, and knowledge of its own."""
    copy = Workspace(root / "city")
    copy.root.mkdir()
    copy.sources.symlink_to(workspace.sources, target_is_directory=True)
    copy.knowledge.mkdir()
    for file in workspace.knowledge.glob("*.parquet"):
        pq.write_table(pq.read_table(file), copy.knowledge / file.name)
    return copy


def test_the_verb_shows_it_and_knows_no_other_action(city, scenerank):
    shown = scenerank("knowledge", "status")
    assert shown.exit_code == 0
    assert "poi_text" in shown.output and "100%" in shown.output and "nothing" in shown.output
    wrong = scenerank("knowledge", "forget")
    assert wrong.exit_code == 2 and "no such action; say `status`" in wrong.words
