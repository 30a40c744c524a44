"""`diff` names what an apply would change: nothing after one, then each changed field, object and service."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest

from feature_repo.diff import Change, changes
from feature_repo.store import open_store


@pytest.fixture
def store(city):
    return open_store(city.workspace)


@pytest.fixture
def definitions(city):
    from feature_repo import definitions

    return definitions


def test_nothing_changes_after_an_apply(store):
    assert changes(store) == []


def test_a_changed_field_is_named_with_both_values(store, definitions, monkeypatch):
    changed = copy.copy(definitions.user_state)
    changed.ttl = timedelta(days=7)
    monkeypatch.setattr(definitions, "user_state", changed)
    assert changes(store) == [Change("FeatureView", "user_state", "ttl", "'2419200s'", "'604800s'")]
    assert str(changes(store)[0]) == "~ FeatureView user_state.ttl: '2419200s' -> '604800s'"


def test_a_feature_more_is_named(store, definitions, monkeypatch):
    from feast import Field
    from feast.types import Int64

    changed = copy.copy(definitions.poi_stats)
    changed.features = [*changed.features, Field(name="poi_visits_7d", dtype=Int64)]
    monkeypatch.setattr(definitions, "poi_stats", changed)
    (change,) = changes(store)
    assert (change.kind, change.name, change.field) == ("FeatureView", "poi_stats", "features")


def test_a_new_service_is_new_and_an_old_one_stays(store, definitions, monkeypatch):
    renamed = copy.copy(definitions.larr)
    renamed.name = "larr_00000000"
    monkeypatch.setattr(definitions, "larr", renamed)
    assert [str(change) for change in changes(store)] == ["+ FeatureService larr_00000000"]


def test_an_object_that_is_gone_is_named(store, definitions, monkeypatch):
    monkeypatch.setattr(definitions, "__all__", [name for name in definitions.__all__ if name != "scene_value"])
    assert [str(change) for change in changes(store)] == ["- Entity scene_value"]
