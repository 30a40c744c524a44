"""The stores in a repository of somebody else's: the one that `feast init` makes, with its own workflow, unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROOT

pytestmark = pytest.mark.story
STORES = {
    "offline_store": {"type": "feature_repo.stores.asof.AsofOfflineStore"},
    "online_store": {"type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore", "path": "data/packed.db"},
    "batch_engine": {"type": "feature_repo.stores.fill.PackedEngine"},
}


def run(folder: Path, *command: str) -> str:
    """A program in a folder, with Feast's command line at hand."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_workflow_of_a_new_feast_repository_runs_on_these_stores(tmp_path):
    run(tmp_path, "feast", "init", "own")
    repo = tmp_path / "own" / "feature_repo"
    config = yaml.safe_load((repo / "feature_store.yaml").read_text())
    (repo / "feature_store.yaml").write_text(yaml.safe_dump({**config, **STORES}))
    trips = pq.read_table(repo / "data/driver_stats.parquet").to_pandas().sort_values(["event_timestamp", "created"])
    newest = [int(trips[trips.driver_id == driver].avg_daily_trips.iloc[-1]) for driver in (1001, 1002)]

    printed = run(repo, sys.executable, "test_workflow.py")
    before, after = re.findall(r"avg_daily_trips  :  \[(\d+), (\d+)\]", printed)
    assert [int(n) for n in before] == newest
    assert [int(n) for n in after] == [1000, newest[1]], "what was pushed is there, and nothing else changed"
    assert printed.count("[3 rows x 13 columns]") == 2, "training rows, and rows for batch scoring"
    # Maps, JSON and structs go through as Feast's own protobufs.
    last = printed[printed.rindex("driver_profile  :") :]
    assert re.search(r"driver_profile  :  \[\{[^}]*'name': 'driver_1001_updated'", last)
    assert re.search(r"driver_config  :  \[\{'max_distance_km': 500, 'preferred_zones': \['north'\]\}", printed)
