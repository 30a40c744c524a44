"""gRPC's health service, and callers who hold its calls open: without a word, without an end, without taking a byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.life import READING, THREADS, WATCHERS, Life
from serving.malformed import MalformedInterceptor
from tests.serving.conftest import Silent, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CHECK, WATCH = (f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))


@pytest.fixture
def life() -> Life:
    life = Life()
    life.set("", SERVING)
    return life


@pytest.fixture
def port(life: Life) -> Iterator[int]:
    """Of a server with the threads that health may take, and one more."""
    server = grpc.server(ThreadPoolExecutor(THREADS + 1), interceptors=[MalformedInterceptor()])
    life.serve(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


@pytest.fixture
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def check(channel: grpc.Channel, name: str = "") -> int:
    asked = health_pb2.HealthCheckRequest(service=name)
    return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20).status


def watch(channel: grpc.Channel, name: str = "") -> grpc.Call:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)


def test_a_name_is_checked_and_watched(life: Life, channel: grpc.Channel) -> None:
    assert check(channel) == SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        check(channel, "store")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watcher = watch(channel, "store")
    assert next(watcher).status == UNKNOWN
    life.set("store", SERVING)
    assert next(watcher).status == SERVING
    life.set("store", SERVING)
    life.set("store", NOT_SERVING)
    assert next(watcher).status == NOT_SERVING, "only what changes is told"
    watcher.cancel()
    until(lambda: life._places._value == WATCHERS)


def test_a_stop_is_told_and_ends_what_watches(life: Life, channel: grpc.Channel) -> None:
    watcher, other = watch(channel), watch(channel, "unknown")
    assert (next(watcher).status, next(other).status) == (SERVING, UNKNOWN)
    life.stop()
    assert ([said.status for said in watcher], list(other)) == ([NOT_SERVING], [])
    life.set("", SERVING)
    assert check(channel) == NOT_SERVING
    assert [said.status for said in watch(channel)] == [NOT_SERVING]


def test_of_too_many_calls_without_a_message_the_oldest_gives_way(
    life: Life, channel: grpc.Channel, silent: Silent
) -> None:
    oldest = silent.call(channel, CHECK)
    until(lambda: len(life.unread) == 1)
    others = [silent.call(channel, method) for method in (CHECK, WATCH) * (READING // 2)]
    until(oldest.done)
    assert oldest.code() is grpc.StatusCode.CANCELLED
    for _ in range(3 * READING):
        assert check(channel) == SERVING
    assert len(life.unread) == READING - 1
    until(lambda: sum(not call.done() for call in others) == READING - 1)
    for call in others:
        call.cancel()
    until(lambda: not life.unread)


def test_so_many_watch_and_the_rest_is_refused(channel: grpc.Channel) -> None:
    watchers = [watch(channel) for _ in range(WATCHERS)]
    assert [next(watcher).status for watcher in watchers] == [SERVING] * WATCHERS
    with pytest.raises(grpc.RpcError) as refused:
        next(watch(channel))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check(channel) == SERVING


def test_who_brings_no_message_at_all_is_told(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary(CHECK)(iter(()), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def _watch_that_takes_nothing() -> bytes:
    """HTTP/2 of a watch whose window is 0: settings, headers, and an empty message."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": WATCH,
        ":authority": "here",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    block = b"".join(b"\0" + bytes((len(n),)) + n + bytes((len(v),)) + v for n, v in pairs)
    settings = _frame(4, 0, 0, struct.pack(">HI", 4, 0))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + _frame(1, 4, 1, block) + _frame(0, 1, 1, bytes(5))


def test_a_watcher_that_takes_nothing_holds_up_nobody(life: Life, port: int, channel: grpc.Channel) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_watch_that_takes_nothing())
        until(lambda: life._places._value == WATCHERS - 1)
        watcher = watch(channel)
        assert (check(channel), next(watcher).status) == (SERVING, SERVING)
        life.set("", NOT_SERVING)
        assert (check(channel), next(watcher).status) == (NOT_SERVING, NOT_SERVING)
    watcher.cancel()
    until(lambda: life._places._value == WATCHERS)
