"""Prompted knowledge from the verb to the pull: what Feast joins, what it serves, and what stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from trainers.bundle import load
from trainers.encoding import Encoding
from trainers.knowledge import load_matrix

TEXTS = ("poi_text", "user_text", "scenario_text")


class Made(NamedTuple):
    """A tiny city and what the verbs printed, before a model was asked and after."""

    workspace: Workspace
    before: str
    after: str

    @property
    def pulled(self) -> pa.Table:
        folder = next(self.workspace.training.glob("llm4msr_*"))
        return pq.read_table(sorted(folder.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def made(project_in: Callable[[Path], Any], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    project = project_in(tmp_path_factory.mktemp("knowledge") / "city")
    model = ("--language-model", str(tiny_model))
    prompts = ("--scenario-prompt", "brief", "--max-length", "512", "--every", "3")
    city = ("data", "city", "--users", "20", "--days", "14", "--pois", "30")
    before = project.verbs(city, ("embed", *model), ("apply",))
    trained = ("train", "--model", "larr", "--recipe", "tiny")
    asked = (("knowledge", *model, *prompts), ("apply",), trained)
    tiny = ("--recipe", "tiny")
    both = ("train", "--model", "larr_llm4msr", *tiny)
    other = ("train", "--model", "llm4msr", "--backbone", "shared_bottom", *tiny)
    after = project.verbs(*asked, both, other, ("materialize",))
    return Made(project.workspace, before, after)


def test_the_verb_shows_what_it_did_and_how_true_it_is(made: Made) -> None:
    said = " ".join(made.after.split())
    assert re.search(r"user_knowledge [│ ]+[0-9a-f]{12} [│ ]+4 ", said)
    assert "planted favourite category" in said and "by chance" in said
    assert "lunch_deals" in said


@pytest.mark.parametrize("name", ["larr_llm4msr", "llm4msr_shared_bottom"])
def test_rankers_with_meta_layers_are_bundles_like_any_other(made: Made, name: str) -> None:
    bundle = load(made.workspace.bundles / name)
    assert bundle.manifest.model == name and bundle.manifest.service.startswith("llm4msr_")
    assert {"user_knowledge", "scenario_knowledge"} <= set(bundle.manifest.knowledge_versions)
    assert ("scene_text" in bundle.manifest.knowledge_versions) == (name == "larr_llm4msr")


def test_only_a_new_service_appears(made: Made) -> None:
    listed = re.compile(r"^((?:ple|larr|llm4msr)\w*): (\d+) views$", re.MULTILINE)
    before, after = dict(listed.findall(made.before)), dict(listed.findall(made.after))
    assert before.items() < after.items()
    [new] = after.keys() - before.keys()
    assert new.startswith("llm4msr_")
    assert int(after[new]) == 2 + int(next(views for name, views in after.items() if name.startswith("larr")))


@pytest.mark.parametrize("space", columns.PROMPTED)
def test_a_view_serves_a_snapshot_for_five_weeks(made: Made, space: str) -> None:
    view = open_store(made.workspace).get_feature_view(space)
    assert view.ttl == timedelta(weeks=5)
    fields = ("row", "version", "text_hash", "text", "words", "told", "vector")
    assert [feature.name for feature in view.features] == [columns.knowledge(space, field) for field in fields]


@pytest.mark.parametrize("space", columns.PROMPTED)
def test_a_row_joins_the_newest_snapshot_before_it(made: Made, space: str) -> None:
    key = columns.PROMPTED[space]
    table = pq.read_table(made.workspace.knowledge / f"{space}.parquet")
    names = (key, columns.EVENT_TIMESTAMP, columns.knowledge(space, columns.ROW))
    snapshots = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    pulled = made.pulled
    joined = list(zip(*(pulled[name].to_pylist() for name in names), strict=True))
    expected = []
    for owner, time, _ in joined:
        past = [(when, row) for who, when, row in snapshots if who == owner and when <= time]
        expected.append(max(past)[1] if past else None)
    assert [row for _, _, row in joined] == expected
    assert len(set(expected)) > 4
    version = columns.knowledge(space, columns.VERSION)
    assert {v for v in pulled[version].to_pylist() if v} == set(table[version].to_pylist())


def test_a_snapshot_holds_nothing_of_the_rows_that_join_it(made: Made) -> None:
    """What the first lines of the newest snapshot say of users is what the log before it says."""
    table = pq.read_table(made.workspace.knowledge / "user_knowledge.parquet")
    log = pq.read_table(made.workspace.source("impressions")).to_pylist()
    lines = zip(
        *(table[n].to_pylist() for n in (columns.USER_ID, columns.EVENT_TIMESTAMP, "user_knowledge_text")), strict=True
    )
    for user, time, text in lines:
        past = [row for row in log if row[columns.USER_ID] == user and row[columns.OUTCOME_TIMESTAMP] < time]
        clicks, requests = sum(row[columns.CLICK] for row in past), len({row[columns.REQUEST_ID] for row in past})
        assert text.startswith(f"Chose {clicks} of {len(past)} in {requests} request")


def test_rankers_find_the_spaces_in_a_fixed_order(made: Made) -> None:
    schema = Schema.load(made.workspace.schema)
    assert Encoding.fit(made.pulled, schema).text_spaces == (*TEXTS, "user_knowledge", "scenario_knowledge")
    matrix = load_matrix(made.workspace.knowledge / "user_knowledge.parquet")
    pulled = made.pulled["user_knowledge_row"].drop_null().to_numpy()
    assert (np.abs(matrix.matrix[pulled]).sum(axis=1) > 0).all()


def test_the_pull_of_the_widest_service_serves_the_narrower_models(made: Made) -> None:
    manifest = (made.workspace.bundles / "larr" / "manifest.json").read_text()
    assert "user_knowledge" not in manifest and not list(made.workspace.training.glob("larr_*"))


def test_the_newest_snapshot_is_online(made: Made) -> None:
    table = pq.read_table(made.workspace.knowledge / "user_knowledge.parquet")
    newest = {
        user: words
        for user, words in zip(*(table[n].to_pylist() for n in (columns.USER_ID, "user_knowledge_words")), strict=True)
    }
    users = list(newest)[:5]
    asked = ["user_knowledge:user_knowledge_words", "user_knowledge:user_knowledge_told"]
    answer = open_store(made.workspace).get_online_features(asked, {columns.USER_ID: users}).to_dict()
    assert answer["user_knowledge_words"] == [newest[user] for user in users]
    assert answer["user_knowledge_told"] == [None] * 5


def test_another_log_forgets_what_was_said_of_the_old_one(
    made: Made, project_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "city")
    workspace.knowledge.mkdir(parents=True)
    for space in columns.PROMPTED:
        (workspace.knowledge / f"{space}.parquet").touch()
    project_in(workspace.root).verbs(("data", "city", "--users", "5", "--days", "7", "--pois", "10"))
    assert list(workspace.knowledge.iterdir()) == []
