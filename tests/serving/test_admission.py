"""The door to work: seats, a bounded queue, and no work for whoever is late or gone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.admission import FIRST_S, Admission, Expired, Gone, Overloaded
from serving.client import Recommender
from serving.server import ServerOptions, create_server
from serving.tries import Retries


def yes() -> bool:
    return True


class Work:
    """Requests that hold their seats until they are let go, and how many were at work at most."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.let_go = threading.Event()
        self._lock, self.now, self.most, self.done = threading.Lock(), 0, 0, 0

    def __call__(self, remaining_s: float | None = None) -> None:
        with self.admission.entered(remaining_s, yes):
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            self.let_go.wait(10)
            with self._lock:
                self.now, self.done = self.now - 1, self.done + 1


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_so_many_work_so_many_wait_and_the_rest_is_refused():
    work = Work(Admission(at_work=2, waiting=3))
    with ThreadPoolExecutor(5) as pool:
        held = [pool.submit(work) for _ in range(5)]
        until(lambda: work.admission.inside == 5)
        for _ in range(3):
            with pytest.raises(Overloaded) as refused:
                work()
        # Four have to end before there is room, two at a time.
        assert refused.value.retry_after_s == pytest.approx(4 * FIRST_S / 2)
        work.let_go.set()
        wait(held)
    assert (work.most, work.done, work.admission.inside) == (2, 5, 0)
    work()  # there is room again
    assert work.done == 6


def test_who_is_late_does_no_work_and_leaves_no_trace():
    work = Work(Admission(at_work=1, waiting=2))
    with pytest.raises(Expired, match="came"):
        work(0.0)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(work)
        until(lambda: work.now == 1)
        with pytest.raises(Expired, match="waited"):
            work(0.02)
        assert work.admission.inside == 1
        work.let_go.set()
        held.result()
    assert work.done == 1


def test_who_has_left_does_no_work():
    admission = Admission(at_work=1, waiting=1)
    with pytest.raises(Gone), admission.entered(None, lambda: False):
        raise AssertionError("worked")
    with admission.entered(None, yes):  # the seat is free
        assert admission.inside == 1


def test_an_error_at_work_frees_the_seat():
    admission = Admission(at_work=1, waiting=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.entered(None, yes):
            1 / 0  # noqa: B018
    assert admission.inside == 0


def test_the_hint_follows_the_time_that_requests_take():
    admission = Admission(at_work=1, waiting=0)
    for _ in range(100):
        with admission.entered(None, yes):
            time.sleep(0.002)
    with admission.entered(None, yes), pytest.raises(Overloaded) as refused, admission.entered(None, yes):
        pass
    assert 0.002 < refused.value.retry_after_s < 0.5 * FIRST_S


def test_a_flood_is_answered_or_refused_with_a_hint_and_the_server_goes_on(pipeline, asker, poi_ids):
    server = create_server(pipeline, ServerOptions(workers=1, waiting=2))

    def ask(client: Recommender) -> grpc.RpcError | None:
        try:
            client.rank(asker, poi_ids)
        except grpc.RpcError as error:
            return error
        return None

    with Recommender(f"127.0.0.1:{server.port}", retries=Retries(tries=1)) as client:
        with ThreadPoolExecutor(24) as pool:
            errors = [e for e in pool.map(ask, [client] * 240) if e is not None]
        assert 0 < len(errors) < 240
        assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        hints = [error_details_pb2.RetryInfo() for _ in errors]
        for error, hint in zip(errors, hints, strict=True):
            status = rpc_status.from_call(error)
            assert status is not None and status.details[0].Unpack(hint)
        assert all(0 < hint.retry_delay.ToMicroseconds() < 10_000_000 for hint in hints)
        assert ask(client) is None
    server.stop()
