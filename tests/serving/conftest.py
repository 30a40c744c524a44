"""One small workspace for all tests of the server, and a server that answers from it over a socket."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
import torch
from sqlalchemy import create_engine

from feature_repo import columns
from feature_repo.workspace import ENVIRONMENT_VARIABLE, Workspace
from serving import watched
from serving.client import Asker, Recommender
from serving.feedback_tables import METADATA
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.server import RunningServer, ServerOptions, create_server

PREPARE = Path(__file__).with_name("prepare_workspace.py")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("serving") / "city"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", ENVIRONMENT_VARIABLE: str(root)}
    done = subprocess.run([sys.executable, str(PREPARE), str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Workspace(root)


@pytest.fixture(scope="session")
def pipeline(workspace: Workspace) -> Pipeline:
    torch.set_num_threads(1)
    return open_pipeline(workspace, workspace.bundles / "larr", workspace.index, unproven=True)


@pytest.fixture(scope="session")
def moment(pipeline: Pipeline) -> datetime:
    """The moment up to which the online store was filled."""
    return pipeline.bundle.schema.split.test


@pytest.fixture(scope="session")
def poi_ids(workspace: Workspace, moment: datetime) -> list[str]:
    """All POIs that were open at the moment."""
    pois = pq.read_table(workspace.source("pois"), filters=[(columns.EVENT_TIMESTAMP, "<=", moment)])
    return pois[columns.POI_ID].to_pylist()


@pytest.fixture(scope="session")
def running(pipeline: Pipeline) -> Iterator[RunningServer]:
    server = create_server(pipeline, ServerOptions(metrics_port=0))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(running: RunningServer) -> Iterator[Recommender]:
    with Recommender(f"127.0.0.1:{running.port}") as recommender:
        yield recommender


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """A database for feedback that holds nothing, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    url = feedback_in(request.getfixturevalue("postgres"))
    METADATA.drop_all(engine := create_engine(url))
    engine.dispose()
    return url


def feedback_in(postgres: dict[str, str]) -> str:
    """The feedback database of a PostgreSQL, as a URL."""
    address = (
        "postgresql+psycopg://{SCENERANK_PG_USER}:x@{SCENERANK_PG_HOST}:{SCENERANK_PG_PORT}/{SCENERANK_PG_DATABASE}"
    )
    return address.format(**postgres)


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for it; a test whose condition does not come fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Silent:
    """Calls that bring no message until the test ends."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.ended.wait(60)
        yield from ()

    def call(self, channel: grpc.Channel, method: str) -> grpc.Future:
        return channel.stream_unary(method).future(iter(self))


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    silent.ended.set()


@pytest.fixture
def asker(moment: datetime) -> Asker:
    return Asker(
        user_id="u3",
        scenario_id="lunch_deals",
        time=moment,
        place=(60.17, 24.94),
        scene={"weather": "rain", "temperature": 7.0},
    )


@pytest.fixture
def quick(monkeypatch):
    """Files are looked at each time that their value is asked for."""
    monkeypatch.setattr(watched, "EVERY_S", 0.0)
