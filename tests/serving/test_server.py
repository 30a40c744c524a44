from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.client import Asker, Recommender, Wish, violations
from serving.opening import open_pipeline
from serving.server import SERVICE, ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.conftest import ROOT, Project
from tests.serving.damage import copied, spoil_records

SERVE = """
import sys
import time
from pathlib import Path
from feature_repo.workspace import activate
from serving.lifetime import serve
from serving.server import ServerOptions

def started(server):
    loaded = {name.split(".")[0] for name in sys.modules}
    print(server.port, sorted(loaded & {"transformers", "peft"}), flush=True)

workspace = activate(Path(sys.argv[1]))
options = ServerOptions(grace_seconds=20)
serve(workspace, workspace.bundles / "larr", workspace.index, options, unproven=True, started=started)
print("left", flush=True)
"""


@pytest.fixture
def raw(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel


def test_rank_answers_in_full(client, pipeline, asker, poi_ids, moment):
    ranking = client.rank(asker, ["nowhere", *poi_ids[:9]], Wish(details=True))
    assert len(ranking.poi_ids) == 10 and ranking.poi_ids[-1] == "nowhere"
    for array in (ranking.scores, ranking.p_click, ranking.p_order, ranking.distance_km, ranking.details):
        assert len(array) == 10
    assert list(ranking.scores[:9]) == sorted(ranking.p_click[:9], reverse=True)
    assert list(ranking.poi_statuses) == [pb.VALUE_STATUS_PRESENT] * 9 + [pb.VALUE_STATUS_MISSING]
    assert ranking.details[0].name and ranking.details[0].category and not ranking.details[9].name
    assert ranking.user_status == pb.VALUE_STATUS_PRESENT
    said = {aspect.feature: aspect.value for aspect in ranking.scene}
    assert (said["weather"], said["temperature_band"], said["daypart"]) == ("rain", "cool", "night")
    manifest = pipeline.bundle.manifest
    assert (ranking.model.name, ranking.model.version) == ("larr", manifest.version)
    assert ranking.model.service == manifest.service
    assert ranking.time.ToDatetime(tzinfo=moment.tzinfo) == moment
    assert len(ranking.attribution_token) >= 16


def test_counts_add_up_and_ages_are_there(client, asker, poi_ids, moment):
    ranking = client.rank(asker, poi_ids[:5])
    for status in ("present", "missing", "stale"):
        assert getattr(ranking.values, status) == sum(getattr(view.values, status) for view in ranking.views)
    assert [view.view for view in ranking.views] == sorted(view.view for view in ranking.views)
    for view in ranking.views:
        assert view.HasField("oldest") == view.HasField("newest") == (view.values.present > 0)
        if view.values.present:
            assert view.oldest.seconds <= view.newest.seconds <= moment.timestamp()


def test_arrays_of_numbers_are_packed(client, asker, poi_ids):
    ranking = client.rank(asker, poi_ids[:40])
    one = pb.Ranking(p_click=ranking.p_click)
    assert len(one.SerializeToString()) <= 4 * 40 + 4
    assert not ranking.details


def test_recommend_answers_with_its_index(client, raw, pipeline, asker):
    ranking = client.recommend(asker, Wish(limit=5, radius_km=5.0, objective="order"))
    assert len(ranking.poi_ids) == 5 and max(ranking.distance_km) <= 5.0
    assert list(ranking.scores) == list(ranking.p_order)
    message = pb.RecommendRequest(context=asker.message())
    answer = pb_grpc.RecommenderServiceStub(raw).Recommend(message)
    assert answer.index_version == pipeline.index_version != ""
    assert len(answer.ranking.poi_ids) == 20


def test_broken_rules_come_as_violations(client, asker):
    with pytest.raises(grpc.RpcError) as caught:
        client.rank(Asker(user_id="", scenario_id="tab9", place=(91.0, 0.0), scene={"moon": "full"}), ["a", "a"])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = violations(caught.value)
    assert set(found) == {
        "context.user_id",
        "context.scenario_id",
        "context.place.latitude",
        "context.scene_inputs['moon']",
        "poi_ids[1]",
    }
    assert "lunch_deals" in found["context.scenario_id"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.RankRequest(objective=9), "objective"),
        (pb.RankRequest(context=pb.RequestContext(time=Timestamp(nanos=-1))), "context.time"),
        (pb.RankRequest(context=pb.RequestContext(time=Timestamp(seconds=2**62))), "context.time"),
        (
            pb.RankRequest(context=pb.RequestContext(scene_inputs={"weather": pb.SceneInput()})),
            "context.scene_inputs['weather']",
        ),
        (pb.RankRequest(context=pb.RequestContext(place=pb.Place())), "context.place.latitude"),
        (pb.RankRequest(), "context.user_id"),
    ],
)
def test_what_only_the_wire_can_break_is_refused_too(raw, message, field):
    with pytest.raises(grpc.RpcError) as caught:
        pb_grpc.RecommenderServiceStub(raw).Rank(message)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in violations(caught.value)


@pytest.fixture
def broken(workspace, tmp_path):
    """A copy of the workspace, to be damaged."""
    return copied(workspace, tmp_path / "city")


@contextmanager
def serving(workspace):
    pipeline = open_pipeline(workspace, workspace.bundles / "ple", None, unproven=True)
    server = create_server(pipeline, ServerOptions())
    with Recommender(f"127.0.0.1:{server.port}") as client:
        yield client
    server.stop()
    pipeline.close()


def test_a_fault_shows_an_id_and_keeps_the_rest_in_the_log(broken, asker, caplog):
    spoil_records(broken, "user_profile")
    with caplog.at_level(logging.ERROR), serving(broken) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.rank(asker, ["secret-poi"])
        with pytest.raises(grpc.RpcError) as without_index:
            client.recommend(asker)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    error_id = caught.value.details().removeprefix("internal error ")
    assert len(error_id) == 32 and error_id in caplog.text
    assert "in a layout that it does not describe" in caplog.text
    assert without_index.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_store_whose_file_is_damaged_is_one_that_does_not_answer(broken, asker, caplog):
    (broken.root / "online.db").write_bytes(b"damaged" * 1000)
    with caplog.at_level(logging.WARNING), serving(broken) as client:
        answer = client.rank(asker, ["b", "a"])
    assert list(answer.poi_ids) == ["b", "a"] and set(answer.poi_statuses) == {pb.VALUE_STATUS_MISSING}
    assert answer.degraded.reason == pb.Degradation.REASON_STORE_UNAVAILABLE
    assert "poi_profile" in answer.degraded.missing
    assert "not a database" in caplog.text


def test_health_and_reflection(raw):
    health = health_pb2_grpc.HealthStub(raw)
    for name in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    database = ProtoReflectionDescriptorDatabase(raw)
    assert SERVICE == "scenerank.v1.RecommenderService" and SERVICE in database.get_services()
    methods = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
    assert {"Rank", "Recommend"} <= set(methods)


def test_a_taken_port_is_an_error(running, pipeline):
    address = f"127.0.0.1:{running.port}"
    with pytest.raises(OSError, match=rf"cannot listen on {address}: another program does.*; take another one"):
        create_server(pipeline, ServerOptions(address=address))


def test_an_oversized_message_is_refused(raw, asker):
    message = pb.RankRequest(context=asker.message(), poi_ids=["x" * 1000] * 3000)
    with pytest.raises(grpc.RpcError) as caught:
        pb_grpc.RecommenderServiceStub(raw).Rank(message)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_largest_allowed_request_fits(client, asker):
    ranking = client.rank(asker, [f"{i:0256d}" for i in range(1000)], Wish(limit=1))
    assert len(ranking.poi_ids) == 1


def test_answers_side_by_side_are_the_answers_one_by_one(client, asker, poi_ids):
    alone = client.rank(asker, poi_ids[:15])
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: client.rank(asker, poi_ids[:15]), range(18)))
    for answer in answers:
        assert list(answer.poi_ids) == list(alone.poi_ids)
        assert list(answer.scores) == list(alone.scores)
        assert answer.values == alone.values


def test_a_server_that_drains_takes_calls_while_it_says_that_it_stops(workspace, asker, poi_ids):
    served = Project(ROOT, workspace).served("--bundle", "larr", "--unproven", "--drain", "8")
    with served as running, grpc.insecure_channel(running.address) as channel:
        stub, health = pb_grpc.RecommenderServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        running.process.send_signal(signal.SIGTERM)
        until, end = health_pb2.HealthCheckResponse.NOT_SERVING, time.monotonic() + 6.0
        while health.Check(health_pb2.HealthCheckRequest()).status != until:
            assert time.monotonic() < end
            time.sleep(0.02)
        answer = stub.Rank(pb.RankRequest(context=asker.message(), poi_ids=poi_ids))
        assert len(answer.ranking.poi_ids) == len(poi_ids)
        assert running.process.wait(timeout=30) == 0


def test_metrics_that_cannot_listen_name_the_port(pipeline):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"metrics cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            create_server(pipeline, ServerOptions(metrics_port=port))


def test_a_stopping_server_says_so_and_answers_what_it_took(workspace, asker, poi_ids):
    command = [sys.executable, "-W", "ignore", "-c", SERVE, str(workspace.root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        port, forbidden = process.stdout.readline().split(maxsplit=1)
        assert forbidden.strip() == "[]", "the server loaded a language model"
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, health = pb_grpc.RecommenderServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            message = pb.RankRequest(context=asker.message(), poi_ids=poi_ids)
            stub.Rank(message)
            under_way = stub.Rank.future(message)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert [said.status for said in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING], "and it ends"
            assert len(under_way.result(timeout=30).ranking.poi_ids) == len(poi_ids)
            stopped = time.monotonic()
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - stopped < ServerOptions().grace_seconds, "a watcher cost the stop its grace"
        assert process.stdout.read() == "left\n"
    finally:
        process.kill()
