"""The join on Ray, here on this machine, against the join in this process, on the city's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from feast import FeatureStore

from feature_repo.datasets.schema import Schema
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from serving import stages
from trainers import training_set
from trainers.training_set import Pull


def opened(workspace: Workspace, offline: dict[str, Any], folder: Path) -> FeatureStore:
    """The workspace's store with another offline store."""
    config = yaml.safe_load(workspace.feature_store_yaml.read_text()) | {"offline_store": offline}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return FeatureStore(fs_yaml_file=folder / "feature_store.yaml")


@pytest.mark.full
def test_a_pull_on_ray_has_the_rows_of_a_pull_here(ray, city, tmp_path):
    workspace, split = city.workspace, Schema.load(city.workspace.schema).split
    here = open_store(workspace)
    there = opened(workspace, {"type": "feature_repo.stores.asof_ray.AsofRayOfflineStore", "parts": 5}, tmp_path)
    pull = Pull(service=stages.service_name(here, "larr"), start=split.test, end=split.end)
    spine = training_set.impressions(workspace, pull)
    ours = training_set.join(workspace, here, pull.service, spine)
    assert len(ours) == len(spine)
    assert training_set.join(workspace, there, pull.service, spine).equals(ours)
