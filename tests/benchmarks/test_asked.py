"""Clean prompts know nothing later than themselves, leaky ones do; means of POIs are those of production."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.experiments import worlds
from benchmarks.experiments.asked import Leaky, PoiClicks, PromptChoice
from benchmarks.experiments.city import AskedCity
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import PoiMeans, read
from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import POI_SPACE, USER_KNOWLEDGE, load_matrix
from trainers.language.facts import FactsConfig
from trainers.language.poolings import PoiMean
from trainers.language.snapshots import Wording, read_questions

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def copied(city, tmp_path):
    """The city's source tables, to be changed, and the rows of its POIs' texts."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(city.workspace.sources, workspace.sources)
    worlds.write_rows(workspace, POI_SPACE)
    return workspace


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def start_of_test(workspace: Workspace) -> datetime:
    return Schema.load(workspace.schema).split.test


def clicks_turned(workspace: Workspace) -> None:
    """In the test part, whatever was clicked was not, and the other way round."""
    path = workspace.source("impressions")
    log = pq.read_table(path)
    late = pc.greater_equal(log[columns.EVENT_TIMESTAMP], pa.scalar(start_of_test(workspace)))
    click = pc.if_else(late, pc.subtract(1, log[columns.CLICK]), log[columns.CLICK]).cast(log[columns.CLICK].type)
    pq.write_table(log.set_column(log.column_names.index(columns.CLICK), columns.CLICK, click), path)


def of_users(asked: PromptChoice, workspace: Workspace, before_us: int) -> dict[tuple[str, int], str]:
    """What is asked of users in the snapshots that rows before a time can join."""
    questions = asked.questions(workspace)["user"]
    return {(q.key, q.time_us): q.prompt for q in questions if q.time_us <= before_us}


@pytest.mark.parametrize("asked", [PromptChoice(), PromptChoice(user="history"), PoiClicks()])
def test_what_is_asked_before_the_test_part_does_not_know_it(copied, asked):
    at = microseconds(start_of_test(copied))
    before = of_users(asked, copied, at)
    assert len({time for _, time in before}) >= 3
    clicks_turned(copied)
    assert of_users(asked, copied, at) == before


def test_leaky_prompts_know_the_test_part_from_the_first_snapshot_on(copied):
    at = microseconds(start_of_test(copied))
    clean, before = of_users(PromptChoice(), copied, at), of_users(Leaky(), copied, at)
    clicks_turned(copied)
    after = of_users(Leaky(), copied, at)
    first = min(time for _, time in before)
    assert {key for key, time in before if time == first} > {key for key, time in clean if time == first}
    log = pq.read_table(copied.source("impressions"))
    tested = set(
        log.filter(pc.greater_equal(log[columns.EVENT_TIMESTAMP], start_of_test(copied)))["user_id"].to_pylist()
    )
    changed = {key for key, time in before if time == first and before[key, time] != after[key, time]}
    assert changed <= tested and len(changed) > 0.5 * len(tested)


def test_a_leak_of_users_leaves_scenarios_clean(copied):
    assert Leaky().questions(copied)["scenario"] == PromptChoice().questions(copied)["scenario"]


def test_a_leaky_world_is_another_one():
    kinds = (PromptChoice(), Leaky(), PoiClicks())
    assert len({worlds.plain_hash(replace(AskedCity(), prompts=kind)) for kind in kinds}) == 3
    assert worlds.plain(AskedCity())["AskedCity"]["prompts"] == {
        "scenario": "contrast",
        "user": "interests",
        "facts": None,
    }


def test_means_of_pois_are_those_that_production_would_write(copied, city, tiny_model, tmp_path):
    """Same users, same times, same vectors as `scenerank knowledge --pooling poi-mean` with the same model."""
    places = Places(scratch=tmp_path / "scratch", results=tmp_path / "results")
    states = PoiMeans(model=str(tiny_model))
    users = PoiClicks().questions(copied)["user"]
    prompts = [user.prompt for user in users]
    read(states.reading(USER_KNOWLEDGE, prompts), places)
    found = states.of(USER_KNOWLEDGE, prompts, places)

    pois = load_matrix(city.workspace.knowledge / f"{POI_SPACE}.parquet")
    wording = Wording(prompts={}, tell={}, platform="", pois=pois)
    # The model that embedded the city was there from the beginning.
    there = read_questions(copied, FactsConfig(), wording, 0, lambda what, done, total: None)["user"]
    known = {(q.key, q.time_us): q.prompt for q in there}
    assert known.keys() == {(q.key, q.time_us) for q in users} and len(known) > 50
    [*readings] = PoiMean(pois).read([known[q.key, q.time_us] for q in users])
    expected = np.concatenate([reading.vectors_nE for reading in readings])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert any(len(set(json.loads(prompt))) < len(json.loads(prompt)) for prompt in prompts)  # a click counts once


def test_means_of_pois_have_the_version_of_the_pois(tiny_model, tmp_path):
    places = Places(scratch=tmp_path / "scratch", results=tmp_path / "results")
    states = PoiMeans(model=str(tiny_model))
    versions = states.versions(places)
    assert versions is not None
    assert versions[USER_KNOWLEDGE] == states.reading(USER_KNOWLEDGE, ['["soup"]']).model.versions(places)[POI_SPACE]
    assert states.reading(USER_KNOWLEDGE, ['["soup", "soup"]']).missing(places) == ["soup"]
