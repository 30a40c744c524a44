"""What observers are told of a request: its end, its stages, what was noted; over a real socket."""

from __future__ import annotations

import threading

import grpc
import pytest

from serving import observe
from serving.client import Recommender
from serving.observe import Answered
from serving.server import ServerOptions, create_server

RANK = "/scenerank.v1.RecommenderService/Rank"


@pytest.fixture
def seen(pipeline):
    """A server, and what its observer was told."""
    told: list[Answered] = []
    server = create_server(pipeline, ServerOptions(observers=(told.append,)))
    with Recommender(f"127.0.0.1:{server.port}") as client:
        yield client, told
    server.stop()


def test_the_stages_of_a_request_are_parts_of_it(seen, asker, poi_ids):
    client, told = seen
    client.rank(asker, poi_ids[:5])
    (request,) = told
    assert (request.method, request.code, request.notes) == (RANK, "OK", {})
    assert [stage.name for stage in request.stages] == ["queue", "read", "read", "score", "encode"]
    times = [moment for stage in request.stages for moment in (stage.start_s, stage.end_s)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= request.seconds
    reads = [stage.end_s - stage.start_s for stage in request.stages if stage.name == "read"]
    assert request.stage_seconds()["read"] == pytest.approx(sum(reads))


def test_a_request_that_is_refused_is_told_too(seen, asker):
    client, told = seen
    with pytest.raises(grpc.RpcError):
        client.rank(asker, [])
    assert [(request.code, request.stage_seconds().keys()) for request in told] == [("INVALID_ARGUMENT", {"queue"})]


def test_requests_side_by_side_keep_their_own_stages(seen, asker, poi_ids):
    client, told = seen
    threads = [threading.Thread(target=client.rank, args=(asker, poi_ids[:5])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(request.stages) for request in told] == [5] * 12
    assert len({request.request_id for request in told}) == 12


def test_without_a_request_nothing_is_kept():
    with observe.stage("read"):
        observe.note("degraded", "x")
    assert observe.seconds_in("read") == 0.0
    assert observe.request_id() != observe.request_id()
