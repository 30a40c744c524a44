"""The door to work: seats, a bounded queue, and no work for whoever is late or gone."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.admission import FIRST_S, Admission, Expired, Gone, Overloaded
from serving.client import Recommender
from serving.server import ServerOptions, create_server
from serving.tries import Retries
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.serving.conftest import until


class Work:
    """Requests that hold their seats until they are let go, and how many were at work at most."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.let_go = threading.Event()
        self._lock, self.now, self.most, self.done = threading.Lock(), 0, 0, 0

    def __call__(self, remaining_s: float | None = None) -> None:
        with self.admission.entered(remaining_s):
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            self.let_go.wait(10)
            with self._lock:
                self.now, self.done = self.now - 1, self.done + 1


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
    with pytest.raises(Gone), admission.entered(None, lambda call: False):
        raise AssertionError("worked")
    with admission.entered(None):  # the seat is free
        assert admission.inside == 1


def test_an_error_at_work_frees_the_seat():
    admission = Admission(at_work=1, waiting=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.entered(None):
            1 / 0  # noqa: B018
    assert admission.inside == 0


def test_the_hint_follows_the_time_that_requests_take():
    admission = Admission(at_work=1, waiting=0)
    for _ in range(100):
        with admission.entered(None):
            time.sleep(0.002)
    with admission.entered(None), pytest.raises(Overloaded) as refused, admission.entered(None):
        pass
    assert 0.002 < refused.value.retry_after_s < 0.5 * FIRST_S


class Caller(threading.Thread):
    """Asks to be let in, and may leave at any time; `then`: what became of it."""

    def __init__(self, admission: Admission, at_work: Callable[[Caller], None], remaining_s: float | None = None):
        super().__init__(daemon=True)
        self._admission, self._at_work, self._remaining_s = admission, at_work, remaining_s
        self._lock, self._told, self._left = threading.Lock(), list[Callable[[], None]](), False
        self.let_go, self.then = threading.Event(), ""
        self.start()

    def when_gone(self, call: Callable[[], None]) -> bool:
        """As a call's context has it."""
        with self._lock:
            if not self._left:
                self._told.append(call)
            return not self._left

    def leave(self) -> None:
        with self._lock:
            self._left = True
        for call in self._told:
            call()

    def run(self) -> None:
        try:
            with self._admission.entered(self._remaining_s, self.when_gone):
                self.then = "works"
                self._at_work(self)
            self.then = "done"
        except (Overloaded, Expired, Gone) as error:
            self.then = type(error).__name__


class Door(RuleBasedStateMachine):
    """Callers that come, leave and end in any order, beside a list that says who must be where."""

    @initialize(seats=st.integers(1, 3), places=st.integers(0, 4))
    def open(self, seats: int, places: int) -> None:
        self.seats, self.places = seats, places
        self.admission = Admission(seats, places)
        self.works, self.waits = list[Caller](), list[Caller]()

    @rule()
    def one_comes(self) -> None:
        caller = Caller(self.admission, lambda one: one.let_go.wait(30) and None)
        if len(self.works) < self.seats:
            self.works.append(caller)
        elif len(self.waits) < self.places:
            self.waits.append(caller)
            until(lambda: self.admission.waiting == len(self.waits))
        else:
            caller.join(10)
            assert caller.then == "Overloaded"

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def one_that_waits_leaves(self, data: st.DataObject) -> None:
        caller = self.waits.pop(data.draw(st.integers(0, len(self.waits) - 1)))
        caller.leave()
        assert self.admission.waiting == len(self.waits)  # at once
        caller.join(10)
        assert caller.then == "Gone"

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def one_that_works_leaves(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.works)).leave()  # the seat is taken until the work ends

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def one_ends(self, data: st.DataObject) -> None:
        caller = self.works.pop(data.draw(st.integers(0, len(self.works) - 1)))
        caller.let_go.set()
        caller.join(10)
        assert caller.then == "done"
        if self.waits:
            self.works.append(self.waits.pop(0))

    @invariant()
    def everyone_is_where_they_belong(self) -> None:
        until(lambda: all(caller.then == "works" for caller in self.works))
        assert not any(caller.then for caller in self.waits)
        assert (self.admission.waiting, self.admission.inside) == (
            len(self.waits),
            len(self.works) + len(self.waits),
        )

    def teardown(self) -> None:
        for caller in (*self.works, *self.waits):
            caller.let_go.set()
        for caller in (*self.works, *self.waits):
            caller.join(10)
            assert caller.then == "done"
        assert self.admission.inside == 0


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_storm_of_callers_that_leave_and_are_late_loses_nobody():
    admission, rng = Admission(at_work=3, waiting=8), random.Random(5)
    lock, now, most = threading.Lock(), 0, 0

    def work(caller: Caller) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(rng.uniform(0, 0.1))
        with lock:
            now -= 1

    callers = []
    for _ in range(300):
        callers.append(Caller(admission, work, rng.choice([None, 0.001, 0.05])))
        for caller in rng.sample(callers[-10:], k=min(3, len(callers))):
            if rng.random() < 0.4:
                caller.leave()
        assert 0 <= admission.inside <= 11 and 0 <= admission.waiting <= 8
    for caller in callers:
        caller.join(10)
    assert Counter(caller.then for caller in callers).keys() == {"done", "Overloaded", "Expired", "Gone"}
    assert (now, most, admission.inside, admission.waiting) == (0, 3, 0, 0)


def test_a_caller_that_cancels_frees_its_place_at_once(pipeline, asker, poi_ids):
    server = create_server(pipeline, ServerOptions(workers=1, waiting=1))
    message = pb.RankRequest(context=asker.message(), poi_ids=poi_ids[:3])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        with server.admission.entered(None):  # the only seat
            waits = stub.Rank.future(message, timeout=30)
            until(lambda: server.admission.waiting == 1)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Rank(message, timeout=30)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            waits.cancel()
            until(lambda: server.admission.waiting == 0)
            waits = stub.Rank.future(message, timeout=30)
            until(lambda: server.admission.waiting == 1)
        assert waits.result().ranking.poi_ids
    server.stop()


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
