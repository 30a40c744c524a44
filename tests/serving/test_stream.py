"""`scenerank stream`, as a person runs it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from feature_repo.datasets.schema import Schema
from feature_repo.streaming.ledger import Ledger


@pytest.fixture(scope="module")
def place(city, project_in, tmp_path_factory) -> Any:
    """A copy of the city with an online store of its own."""
    root = tmp_path_factory.mktemp("stream") / "city"
    shutil.copytree(city.workspace.root, root)
    yaml = root / "feature_store.yaml"
    yaml.write_text(yaml.read_text().replace(str(city.workspace.root), str(root)))
    return project_in(root)


def click(place: Any, event_id: str, user: str, poi: str) -> str:
    time_ = Schema.load(place.workspace.schema).split.end
    return json.dumps({"event_id": event_id, "user_id": user, "poi_id": poi, "time": time_.isoformat()}) + "\n"


def test_clicks_of_a_file_once_with_what_was_left_out(place, tmp_path):
    file = tmp_path / "clicks.jsonl"
    file.write_text(click(place, "e1", "u1", "nowhere") + "{\n")
    said = place.scenerank("stream", str(file), "--once").stdout
    assert "0 clicks, 0 repeated, 2 left out" in said
    rejected = place.scenerank("stream", "--rejected")
    assert rejected.stdout == file.read_text()
    assert "no 'nowhere' in the online store" in rejected.stderr and "Invalid JSON" in rejected.stderr


def test_one_of_file_and_stream_is_asked_for(place):
    done = place.scenerank("stream", check=False)
    assert done.returncode == 2 and "give a file or --redis-stream" in done.stderr


def test_a_follower_says_how_it_goes_when_it_is_stopped_and_goes_on_later(place, city, tmp_path):
    import pyarrow.parquet as pq

    poi = pq.read_table(city.workspace.source("pois"))["poi_id"][0].as_py()
    file = tmp_path / "clicks.jsonl"
    file.write_text(click(place, "e10", "u1", poi))
    command = [sys.executable, "-m", "serving.cli", "stream", str(file)]
    with subprocess.Popen(
        command, cwd=place.root, env=place.environment, stdout=subprocess.PIPE, text=True
    ) as follower:
        record = place.workspace.stream
        until = time.monotonic() + 60
        while time.monotonic() < until and Ledger(f"sqlite:///{record}").position(f"file:{file}") is None:
            time.sleep(0.1)
        second = place.scenerank("stream", str(file), "--once", "--again", check=False)
        refused = place.scenerank("data", "city", "--size", "small", "--seed", "77", check=False)
        follower.send_signal(signal.SIGTERM)
        said, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0 and "1 clicks, 0 repeated, 0 left out" in said
    assert second.returncode == 2 and f"another `scenerank stream` follows file:{file}" in second.stderr
    assert refused.returncode == 2 and "clicks are being streamed into" in refused.stderr
    with file.open("a") as more:
        more.write(click(place, "e10", "u1", poi) + click(place, "e11", "u2", poi))
    assert "1 clicks, 1 repeated" in place.scenerank("stream", str(file), "--once").stdout
    assert "2 clicks, 1 repeated" in place.scenerank("stream", str(file), "--once", "--again").stdout
