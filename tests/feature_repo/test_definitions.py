"""The Feast definitions as a Feast user meets them: `feast apply`, `feast materialize`, and what is in the registry."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import timedelta

import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore

from feature_repo import columns
from feature_repo.store import online_views, open_store

STATISTICS = {f"{owner}_stats" for owner in columns.USUAL_STATISTICS}  # what the city keeps


@pytest.fixture(scope="module")
def views(city):
    return {view.name: view for view in open_store(city.workspace).list_batch_feature_views()}


def test_there_is_a_view_for_every_table_of_the_sources(views):
    assert set(views) == {"user_profile", "user_state", "poi_profile", *STATISTICS, *columns.KNOWLEDGE}


def test_behaviour_expires_and_descriptions_do_not(views):
    assert {name: views[name].ttl for name in views} == {
        **dict.fromkeys(STATISTICS, timedelta(days=29)),
        **dict.fromkeys(["user_profile", "poi_profile", *columns.KNOWLEDGE], timedelta(0)),
        "user_state": timedelta(days=28),
    }


def test_a_feature_name_belongs_to_one_view(views, city):
    # `text` of users is read by its view's name; everything else becomes a column of its own in a pull.
    scene = open_store(city.workspace).get_on_demand_feature_view("scene")
    counts = Counter(feature.name for view in [*views.values(), scene] for feature in view.features)
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_view_reads_columns_that_its_file_has(views):
    for view in views.values():
        there = set(pq.read_schema(view.batch_source.path).names)
        wanted = {f.name for f in view.features} | set(view.join_keys)
        wanted |= {view.batch_source.timestamp_field, view.batch_source.created_timestamp_column}
        assert wanted <= there, view.name


def test_services_hold_what_their_models_may_see(city):
    from feature_repo import services

    seen = {
        model: {reference.split(":")[0] for reference in services.feature_references(getattr(services, model))}
        for model in ("ple", "ple_scene_ids", "larr")
    }
    assert "scene" not in seen["ple"]
    assert seen["ple_scene_ids"] == seen["ple"] | {"scene"}
    assert seen["larr"] == seen["ple_scene_ids"] | {"poi_text", "user_text", "scenario_text"}
    names = {service.name for service in open_store(city.workspace).list_feature_services()}
    assert {getattr(services, model).name for model in seen} <= names


def test_plain_feast_applies_and_materialises_a_fresh_clone(project, city):
    workspace = project.workspace
    for folder in (city.workspace.sources, city.workspace.knowledge):
        shutil.copytree(folder, workspace.root / folder.name)
    # What `feast -c feature_repo ...` runs, without SCENERANK_WORKSPACE: the yaml and the sources name the same place.
    feast = ("-m", "feast.cli.cli", "-c", "feature_repo")
    project.run(*feast, "apply", bound=False)
    assert "larr_" in project.run(*feast, "feature-services", "list", bound=False).stdout
    chosen = ("-v", "poi_profile", "-v", "user_state")
    project.run(*feast, "materialize", "2000-01-01T00:00:00", "2012-10-28T00:00:00", *chosen, bound=False)
    config = yaml.safe_load((project.root / "feature_repo" / "feature_store.yaml").read_text())
    config["registry"]["path"] = f"sqlite:///{workspace.root / 'registry.db'}"
    config["online_store"]["path"] = str(workspace.root / "online.db")
    workspace.feature_store_yaml.write_text(yaml.safe_dump(config))
    store = FeatureStore(fs_yaml_file=workspace.feature_store_yaml)
    assert online_views(store) == online_views(open_store(city.workspace))
    pois = pq.read_table(workspace.source("pois"))
    asked = pois[columns.POI_ID].to_pylist()[:20]
    answer = store.get_online_features([f"poi_profile:{columns.NAME}"], {columns.POI_ID: asked}).to_dict()
    assert answer[columns.NAME] == pois[columns.NAME].to_pylist()[:20]
