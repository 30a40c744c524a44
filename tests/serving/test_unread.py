"""Callers that say nothing, or hold their calls open: whatever they call, rankings and health go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import unread
from serving.auth import Tokens
from serving.client import Access, Asker, Recommender
from serving.described import STREAMS, Described
from serving.life import READING as HEALTH_READING
from serving.pipeline import Pipeline
from serving.server import SPARE_THREADS, RunningServer, ServerOptions, create_server
from serving.v1 import recommender_pb2 as pb
from tests.serving.conftest import Silent, until

CHECK = "/grpc.health.v1.Health/Check"
OURS, ADMIN = "/scenerank.v1.RecommenderService", "/scenerank.v1.AdminService"
UNARY = (f"{OURS}/Rank", f"{OURS}/Recommend", f"{OURS}/Explain", f"{OURS}/RecordFeedback", f"{ADMIN}/GetServing")
ASKED = reflection_pb2.ServerReflectionRequest(list_services="")


@pytest.fixture
def server(pipeline: Pipeline) -> Iterator[RunningServer]:
    """One with as few threads as there can be."""
    server = create_server(pipeline, ServerOptions(workers=1, waiting=0, feedback_streams=1))
    yield server
    server.server.stop(0).wait()  # callers hold their calls
    assert server.stop()


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def client(server: RunningServer) -> Iterator[Recommender]:
    with Recommender(f"127.0.0.1:{server.port}") as client:
        yield client


def check(channel: grpc.Channel) -> int:
    asked = health_pb2.HealthCheckRequest()
    return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20, wait_for_ready=True).status


def reflect(channel: grpc.Channel, silent: Silent) -> grpc.Call:
    """A reflection stream that asks once and stays open."""

    def asked() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield ASKED
        silent.ended.wait(60)

    return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked(), timeout=60)


def test_rankings_go_on_whatever_callers_of_health_hold_open(
    channel: grpc.Channel, client: Recommender, asker: Asker, poi_ids: list[str], silent: Silent
) -> None:
    watchers = [
        health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        for _ in range(SPARE_THREADS)
    ]
    held = [silent.call(channel, CHECK) for _ in range(SPARE_THREADS)]
    until(lambda: sum(call.done() for call in held) >= SPARE_THREADS - HEALTH_READING)
    assert check(channel) == health_pb2.HealthCheckResponse.SERVING
    assert client.rank(asker, poi_ids[:1], timeout_seconds=20).poi_ids == poi_ids[:1]
    for call in (*watchers, *held):
        call.cancel()


def test_rankings_and_health_go_on_whatever_callers_of_reflection_hold_open(
    channel: grpc.Channel, client: Recommender, asker: Asker, poi_ids: list[str], silent: Silent
) -> None:
    held = [reflect(channel, silent) for _ in range(2 * SPARE_THREADS)]
    told, refused = [], []
    for stream in held:
        try:
            told.append(next(stream))
        except grpc.RpcError as error:
            refused.append(error.code())
    assert len(told) == STREAMS and set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert check(channel) == health_pb2.HealthCheckResponse.SERVING
    assert client.rank(asker, poi_ids[:1], timeout_seconds=20).poi_ids == poi_ids[:1]
    silent.ended.set()
    until(lambda: all(stream.done() for stream in held))
    assert list(reflect(channel, silent)), "those that ended made room"


def test_rankings_and_health_go_on_whatever_callers_never_send(
    channel: grpc.Channel, client: Recommender, asker: Asker, poi_ids: list[str], silent: Silent
) -> None:
    held = [silent.call(channel, UNARY[n % len(UNARY)]) for n in range(3 * SPARE_THREADS)]  # more than gRPC takes in
    started = time.monotonic()
    while time.monotonic() < started + 30:  # what comes before the oldest give way may be refused
        try:
            assert client.rank(asker, poi_ids[:1], timeout_seconds=20).poi_ids == poi_ids[:1]
            break
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() < started + 20
    assert check(channel) == health_pb2.HealthCheckResponse.SERVING
    until(lambda: sum(not call.done() for call in held) == unread.READING)
    ended = {call.code() for call in held if call.done()}
    assert ended == {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_who_has_no_token_holds_nothing(pipeline: Pipeline, asker: Asker, silent: Silent, poi_ids: list[str]) -> None:
    tokens = Tokens.one("t" * 32, "test")
    server = create_server(pipeline, ServerOptions(workers=1, waiting=0, tokens=lambda: tokens))
    address = f"127.0.0.1:{server.port}"
    with (
        grpc.insecure_channel(address) as channel,
        Recommender(address, Access(token="t" * 32)) as client,
    ):
        held = [silent.call(channel, UNARY[n % len(UNARY)]) for n in range(SPARE_THREADS)]
        held.append(
            channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter(silent))
        )
        until(lambda: all(call.done() for call in held))
        assert {call.code() for call in held} == {grpc.StatusCode.UNAUTHENTICATED}
        assert client.rank(asker, poi_ids[:1]).poi_ids
    assert server.stop()


def test_a_slow_message_is_waited_for(channel: grpc.Channel, asker: Asker, poi_ids: list[str], silent: Silent) -> None:
    """One of few has all the time, however many are answered beside it."""
    message = pb.RankRequest(context=asker.message(), poi_ids=poi_ids[:1])
    comes = threading.Event()

    def late() -> Iterator[bytes]:
        comes.wait(60)
        yield message.SerializeToString()

    rank, slow = channel.unary_unary(UNARY[0]), channel.stream_unary(UNARY[0]).future(late())
    held = [silent.call(channel, UNARY[0]) for _ in range(unread.READING - 2)]
    with ExitStack() as ended:
        ended.callback(comes.set)
        end = time.monotonic() + unread.PATIENCE_S + 1
        while time.monotonic() < end:
            rank(message.SerializeToString(), timeout=20)
        assert not any(call.done() for call in (slow, *held))
    assert pb.RankResponse.FromString(slow.result(20)).ranking.poi_ids == poi_ids[:1]


def test_many_messages_at_once_are_all_waited_for(channel: grpc.Channel, asker: Asker) -> None:
    """More than may wait for ever, each a moment late: none gives way, whatever becomes of it then."""
    message = pb.RankRequest(context=asker.message()).SerializeToString()  # no place: refused at once

    def late() -> Iterator[bytes]:
        time.sleep(0.5)
        yield message

    with ThreadPoolExecutor(4 * unread.READING) as pool:
        calls = list(pool.map(lambda _: channel.stream_unary(UNARY[0]).future(late()), range(4 * unread.READING)))
        assert {call.code() for call in calls} <= {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }


@pytest.mark.parametrize("method", UNARY)
def test_who_brings_no_message_at_all_is_told(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary(method)(iter(()), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stop_waits_for_nobody_who_holds_a_call_open(pipeline: Pipeline, silent: Silent) -> None:
    """Calls that never bring their message, tools that keep their reflection stream: a fraction of the grace."""
    server = create_server(pipeline, ServerOptions(grace_seconds=60.0))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        held = [silent.call(channel, method) for method in (*UNARY, CHECK)]
        stream = reflect(channel, silent)
        next(stream)
        until(lambda: len(server.unread) == len(UNARY))
        started = time.monotonic()
        assert server.stop()
        assert time.monotonic() - started < unread.PATIENCE_S + 7
        until(lambda: all(call.done() for call in (*held, stream)))


def test_a_reflection_stream_that_opens_at_a_stop_is_refused(silent: Silent) -> None:
    """What gRPC took just before a stop begins just after it."""
    described = Described(("x",))
    server = grpc.server(ThreadPoolExecutor(1))
    described.serve(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        described.stop()
        with pytest.raises(grpc.RpcError) as refused:
            next(reflect(channel, silent))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.stop(0).wait()
