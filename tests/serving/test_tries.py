"""The contract of a call's tries, one suite for the blocking client and that of asyncio, against servers that fail."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.client import Access, Asker, AsyncRecommender, Happened, Recommender
from serving.server import ServerOptions, create_server
from serving.tries import Hedged, Hedging, Retries, SecondTries, channel_options
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.serving.conftest import refused, until

MARGIN_S = 0.5  # a deadline is kept by a thread that has to be woken up, beside others
SOMEBODY = Asker(user_id="u", scenario_id="s")
QUICK = Retries(tries=5, wait_seconds=0.02)

Step = Callable[[grpc.ServicerContext], None]

# A server in a process of its own that says when it has a question, and never answers it.
HANGS = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import grpc
from concurrent import futures
from serving.v1 import recommender_pb2_grpc as pb_grpc

class Servicer(pb_grpc.RecommenderServiceServicer):
    def Rank(self, request, context):
        print("asked", flush=True)
        threading.Event().wait()

server = grpc.server(futures.ThreadPoolExecutor(2))
pb_grpc.add_RecommenderServiceServicer_to_server(Servicer(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def answers(context: grpc.ServicerContext) -> None:
    """A step that lets the answer be given."""


def fails(code: grpc.StatusCode, pushback_ms: int | None = None) -> Step:
    def step(context: grpc.ServicerContext) -> None:
        if pushback_ms is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback_ms)),))
        context.abort(code, "as planned")

    return step


def after(seconds: float, then: Step = answers) -> Step:
    def step(context: grpc.ServicerContext) -> None:
        time.sleep(seconds)
        then(context)

    return step


class Planned(pb_grpc.RecommenderServiceServicer):
    """A server that does with its n-th call what the n-th step says, and with all further ones what the last says.

    Attributes:
        times: when the calls came. left: calls whose caller left before the answer.
    """

    def __init__(self, *steps: Step, port: int = 0) -> None:
        self.steps = list(steps)
        self.times: list[float] = []
        self.left = 0
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_RecommenderServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.times, self.times[1:], strict=False)]

    def stop(self) -> None:
        self._server.stop(None).wait()

    def waits(self, context: grpc.ServicerContext) -> None:
        """A step that waits for its caller to leave."""
        gone = threading.Event()
        if not context.add_callback(gone.set) or gone.wait(10):
            self.left += 1
        context.abort(grpc.StatusCode.CANCELLED, "the caller left")

    def _do(self, context: grpc.ServicerContext) -> None:
        self.times.append(time.monotonic())
        self.steps[min(len(self.times), len(self.steps)) - 1](context)

    def Rank(self, request: pb.RankRequest, context: grpc.ServicerContext) -> pb.RankResponse:
        self._do(context)
        return pb.RankResponse(ranking=pb.Ranking(poi_ids=[self.address]))

    def Recommend(self, request: pb.RecommendRequest, context: grpc.ServicerContext) -> pb.RecommendResponse:
        self._do(context)
        return pb.RecommendResponse(ranking=pb.Ranking(poi_ids=[self.address]))

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        self._do(context)
        return pb.ExplainResponse(explanation=pb.Explanation(poi_id=self.address))

    def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, context: grpc.ServicerContext
    ) -> pb.RecordFeedbackResponse:
        self._do(context)
        return pb.RecordFeedbackResponse(recorded=len(request.events))

    def RecordFeedbackStream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._do(context)
        yield pb.RecordFeedbackResponse()


class Looped:
    """An asyncio client, used as the blocking one is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def made() -> AsyncRecommender:
            return AsyncRecommender(*arguments, **options)

        self._client = self._loop.run_until_complete(made())

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return (lambda *a, **o: self._loop.run_until_complete(found(*a, **o))) if callable(found) else found

    def __enter__(self) -> Looped:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[Recommender, Looped], ids=["blocking", "asyncio"])
def client_of(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def planned() -> Iterator[Callable[..., Planned]]:
    started: list[Planned] = []

    def start(*steps: Step, port: int = 0) -> Planned:
        started.append(Planned(*steps, port=port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def rank(client: Any, **options: Any) -> str:
    """Who answered."""
    answerer: str = client.rank(SOMEBODY, ["p"], **options).poi_ids[0]
    return answerer


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_was_not_done_is_asked_again(client_of, planned, code):
    server = planned(fails(code), fails(code), answers)
    with client_of(server.address, retries=Retries(wait_seconds=0.1)) as client:
        assert rank(client) == server.address
        for question in (lambda: client.recommend(SOMEBODY), lambda: client.explain(SOMEBODY, "p")):
            server.steps = [fails(code)] * (len(server.times) + 1) + [answers]
            question()
    assert len(server.times) == 3 + 2 + 2
    first, second = server.gaps[:2]
    assert first >= 0.8 * 0.1 and second >= 0.8 * 0.2


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
    ],
)
def test_what_would_end_the_same_is_not(client_of, planned, code):
    server = planned(fails(code), answers)
    with client_of(server.address, retries=QUICK) as client:
        assert refused(lambda: rank(client)).code() is code
    assert len(server.times) == 1


@pytest.mark.parametrize(("tries", "made"), [(1, 1), (3, 3), (5, 5)])
def test_so_many_tries_and_no_more(client_of, planned, tries, made):
    server = planned(fails(grpc.StatusCode.UNAVAILABLE))
    with client_of(server.address, retries=Retries(tries=tries, wait_seconds=0.01)) as client:
        assert refused(lambda: rank(client)).code() is grpc.StatusCode.UNAVAILABLE
    assert len(server.times) == made


def test_the_deadline_is_that_of_all_tries(client_of, planned):
    server = planned(after(0.15, fails(grpc.StatusCode.UNAVAILABLE)))
    with client_of(server.address, retries=Retries(wait_seconds=0.15, longest_wait_seconds=0.15)) as client:
        started = time.monotonic()
        # Tries at 0 and about 0.3; the next one would be at about 0.6.
        assert refused(lambda: rank(client, timeout_seconds=0.5)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0.5 <= time.monotonic() - started < 0.5 + MARGIN_S
        time.sleep(0.5)
    assert len(server.times) == 2


def test_a_call_may_have_a_deadline_of_its_own(client_of, planned):
    server = planned(after(0.4))
    with client_of(server.address, Access(timeout_seconds=0.1)) as client:
        assert refused(lambda: rank(client)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert rank(client, timeout_seconds=5) == server.address
    with client_of(server.address, Access(timeout_seconds=5)) as client:
        for call in (
            lambda: rank(client, timeout_seconds=0.1),
            lambda: client.recommend(SOMEBODY, timeout_seconds=0.1),
            lambda: client.record([], timeout_seconds=0.1),
        ):
            assert refused(call).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_servers_word_on_when_to_come_again_counts(client_of, planned):
    server = planned(fails(grpc.StatusCode.RESOURCE_EXHAUSTED, 300), answers)
    with client_of(server.address, retries=QUICK) as client:
        rank(client)
    assert 0.3 <= server.gaps[0] < 0.3 + MARGIN_S
    server = planned(fails(grpc.StatusCode.RESOURCE_EXHAUSTED, 60_000))
    with client_of(server.address, retries=QUICK) as client:
        started = time.monotonic()
        assert refused(lambda: rank(client, timeout_seconds=0.2)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 0.2 + MARGIN_S and len(server.times) == 1


def test_an_outage_is_not_multiplied(client_of, planned):
    down, up = fails(grpc.StatusCode.UNAVAILABLE), answers
    server = planned(down)
    with client_of(server.address, retries=Retries(wait_seconds=0.01, budget=10)) as client:

        def made() -> int:
            before = len(server.times)
            refused(lambda: rank(client))
            return len(server.times) - before

        assert made() == 5  # 9, 8, 7, 6 and 5 are left after its tries
        assert [made() for _ in range(3)] == [1, 1, 1]  # 2 are left
        server.steps = [up]
        for _ in range(45):  # 6.5 are left
            rank(client)
        server.steps = [down]
        assert made() == 2  # 5.5 are left after the first, 4.5 after the second
        assert made() == 1


def test_a_request_of_the_largest_kind_is_kept_to_be_sent_again(client_of, planned):
    server = planned(fails(grpc.StatusCode.UNAVAILABLE), answers)
    with client_of(server.address, retries=QUICK) as client:
        client.rank(SOMEBODY, [f"{number:0256d}" for number in range(1000)])
        assert len(server.times) == 2
        token = "t" * 1000
        server.steps[2:] = [fails(grpc.StatusCode.UNAVAILABLE), answers]
        events = [Happened(token=token, poi_id="p", outcome="shown") for _ in range(1000)]
        assert client.record(events).recorded == 1000
    assert len(server.times) == 4


def test_a_stream_is_not_tried_again(planned):
    server = planned(fails(grpc.StatusCode.UNAVAILABLE))
    with grpc.insecure_channel(server.address, channel_options(QUICK)) as channel:
        stream = pb_grpc.RecommenderServiceStub(channel).RecordFeedbackStream(iter([pb.RecordFeedbackRequest()]))
        assert refused(lambda: next(stream)).code() is grpc.StatusCode.UNAVAILABLE
    assert len(server.times) == 1


def test_a_server_that_comes_up_within_the_deadline_is_found(client_of, planned):
    gone = planned(answers)
    with client_of(gone.address) as client:
        assert rank(client) == gone.address
        gone.stop()
        with ThreadPoolExecutor(1) as pool:
            back = pool.submit(lambda: (time.sleep(0.3), planned(answers, port=gone.port))[1])
            assert rank(client) == gone.address
            assert len(back.result().times) == 1


def test_several_servers_are_asked_in_turn(client_of, planned):
    servers = [planned(answers), planned(answers)]
    with client_of(f"ipv4:{servers[0].address},{servers[1].address}") as client:
        until(lambda: bool(rank(client)) and all(server.times for server in servers))
        before = [len(server.times) for server in servers]
        for _ in range(10):
            rank(client)
    assert [len(server.times) - n for server, n in zip(servers, before, strict=True)] == [5, 5]


def test_a_server_that_dies_with_a_question_leaves_it_to_another(client_of, planned):
    alive = planned(answers)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with subprocess.Popen([sys.executable, "-c", HANGS, root], stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None
        port = int(doomed.stdout.readline())

        def kill() -> None:
            assert doomed.stdout is not None and doomed.stdout.readline() == "asked\n"
            doomed.send_signal(signal.SIGKILL)

        with ThreadPoolExecutor(1) as pool, client_of(f"ipv4:127.0.0.1:{port},{alive.address}") as client:
            killed = pool.submit(kill)
            answered = 0
            while not killed.done():
                assert rank(client, timeout_seconds=20) == alive.address
                answered += 1
            assert [rank(client) for _ in range(5)] == [alive.address] * 5
    assert len(alive.times) == answered + 5


def test_a_busy_server_says_when_to_come_again_in_both_languages(client_of, pipeline, asker, poi_ids):
    server = create_server(pipeline, ServerOptions(workers=1, waiting=0))
    address = f"127.0.0.1:{server.port}"
    try:
        with server.admission.entered(None), grpc.insecure_channel(address) as channel:
            stub = pb_grpc.RecommenderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Rank(pb.RankRequest(context=asker.message(), poi_ids=poi_ids))
            hint = error_details_pb2.RetryInfo()
            assert rpc_status.from_call(caught.value).details[0].Unpack(hint)
            pushback_ms = int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"])
            assert pushback_ms - 1 < hint.retry_delay.ToMicroseconds() / 1000 <= pushback_ms
        seat = server.admission.entered(None)
        seat.__enter__()
        with ThreadPoolExecutor(1) as pool, client_of(address) as client:
            freed = pool.submit(lambda: (time.sleep(0.03), seat.__exit__(None, None, None)))
            assert len(client.rank(asker, poi_ids[:3]).poi_ids) == 3
            freed.result()
    finally:
        server.stop()


def test_the_first_answer_counts_and_the_other_call_is_cancelled(client_of, planned):
    slow, quick = planned(answers), planned(answers)
    slow.steps = [slow.waits]
    hedging = Hedging(after_seconds=0.1, to=quick.address)
    with client_of(slow.address, Access(timeout_seconds=60), hedging=hedging) as client:
        started = time.monotonic()
        assert rank(client) == quick.address
        assert client.recommend(SOMEBODY).poi_ids == [quick.address]
        assert client.explain(SOMEBODY, "p").poi_id == quick.address
        assert client.hedged == Hedged(calls=3, sent=3, won=3)
        until(lambda: slow.left == 3)
    assert quick.times[0] - started >= 0.1


def test_a_quick_answer_is_not_asked_for_twice(client_of, planned):
    quick, other = planned(answers), planned(answers)
    with client_of(quick.address, hedging=Hedging(after_seconds=2, to=other.address)) as client:
        assert rank(client) == quick.address
        quick.steps = [fails(grpc.StatusCode.INVALID_ARGUMENT)]
        assert refused(lambda: rank(client)).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert client.hedged == Hedged(calls=2)
    assert not other.times


BROKEN = fails(grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize(
    ("first", "second", "answerer", "won"),
    [(after(0.4), BROKEN, 0, 0), (after(0.4, BROKEN), after(0.6), 1, 1), (after(0.2), after(0.9), 0, 0)],
    ids=["the second fails", "the first fails", "the first is sooner"],
)
def test_an_error_waits_for_the_other_try(client_of, planned, first, second, answerer, won):
    servers = [planned(first), planned(second)]
    with client_of(servers[0].address, hedging=Hedging(after_seconds=0.1, to=servers[1].address)) as client:
        assert rank(client) == servers[answerer].address
        assert client.hedged == Hedged(calls=1, sent=1, won=won)


def test_where_both_fail_it_is_the_error_of_the_first(client_of, planned):
    first = planned(after(0.3, fails(grpc.StatusCode.INTERNAL)))
    second = planned(fails(grpc.StatusCode.UNAVAILABLE))
    with client_of(first.address, hedging=Hedging(after_seconds=0.1, to=second.address)) as client:
        assert refused(lambda: rank(client)).code() is grpc.StatusCode.INTERNAL
        assert client.hedged == Hedged(calls=1, sent=1)
    assert len(second.times) == 1  # it is not tried again


def test_both_tries_have_the_deadline_of_the_call(client_of, planned):
    first, second = planned(answers), planned(answers)
    first.steps, second.steps = [first.waits], [second.waits]
    with client_of(first.address, hedging=Hedging(after_seconds=0.8, to=second.address)) as client:
        started = time.monotonic()
        assert refused(lambda: rank(client, timeout_seconds=1)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1 <= time.monotonic() - started < 1 + MARGIN_S
        assert refused(lambda: rank(client, timeout_seconds=0.1)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert client.hedged == Hedged(calls=2, sent=1)
    until(lambda: (first.left, second.left) == (2, 1))


def test_feedback_is_never_hedged(client_of, planned):
    slow, other = planned(after(0.3)), planned(answers)
    with client_of(slow.address, hedging=Hedging(after_seconds=0.05, to=other.address)) as client:
        client.record([Happened(token="t", poi_id="p", outcome="shown")])
        assert client.hedged == Hedged()
    assert (len(slow.times), len(other.times)) == (1, 0)


def test_without_another_address_the_second_try_goes_to_the_same(client_of, planned):
    server = planned(answers)
    server.steps = [server.waits, answers]
    with client_of(server.address, hedging=Hedging(after_seconds=0.1)) as client:
        assert rank(client) == server.address
    assert len(server.times) == 2


def test_second_tries_are_a_share_of_the_calls():
    tries = SecondTries(Hedging(after_seconds=1, share=0.1))

    def slow_call() -> bool:
        tries.called()
        return tries.granted()

    # Ten are saved at first, and ten calls earn one: the 11th spends what the 2nd to the 11th earned, and so on.
    assert [number for number in range(1, 42) if slow_call()] == [*range(1, 12), 21, 31, 41]
    assert tries.seen == Hedged(calls=41, sent=14, withheld=27)


def test_a_second_try_that_is_withheld_leaves_the_first_alone(client_of, planned):
    slow, other = planned(after(0.1)), planned(answers)
    with client_of(slow.address, hedging=Hedging(after_seconds=0.03, to=other.address, share=1e-6)) as client:
        assert [rank(client) for _ in range(12)] == [other.address] * 10 + [slow.address] * 2
        assert client.hedged == Hedged(calls=12, sent=10, won=10, withheld=2)


def test_a_server_does_not_work_for_who_was_answered_elsewhere(client_of, pipeline, running, asker, poi_ids):
    busy = create_server(pipeline, ServerOptions(workers=1, waiting=1))
    try:
        with busy.admission.entered(None):
            hedging = Hedging(after_seconds=0.1, to=f"127.0.0.1:{running.port}")
            with client_of(f"127.0.0.1:{busy.port}", Access(timeout_seconds=30), hedging=hedging) as client:
                assert len(client.rank(asker, poi_ids[:3]).poi_ids) == 3
                assert client.hedged == Hedged(calls=1, sent=1, won=1)
            until(lambda: busy.admission.inside == 1)  # who left gave up the place
        until(lambda: busy.admission.inside == 0)
    finally:
        busy.stop()


@pytest.mark.parametrize("hedging", [None, Hedging(after_seconds=0.05)])
def test_a_task_that_is_cancelled_cancels_its_calls(planned, hedging):
    server = planned(answers)
    server.steps = [server.waits]
    calls = 1 if hedging is None else 2

    async def ask() -> None:
        async with AsyncRecommender(server.address, Access(timeout_seconds=60), hedging=hedging) as client:
            task = asyncio.create_task(client.rank(SOMEBODY, ["p"]))
            while len(server.times) < calls:
                await asyncio.sleep(0.01)
            assert server.left == 0
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            until(lambda: server.left == calls)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retries(tries=0), "tries must be from 1 to 5, are 0"),
        (lambda: Retries(tries=6), "tries must be from 1 to 5, are 6"),
        (lambda: Retries(wait_seconds=2), "2 and 1.0"),
        (lambda: Retries(budget=0), "budget must be from 1 to 1000, is 0"),
        (lambda: Hedging(after_seconds=0), "after_seconds must be above 0, is 0"),
        (lambda: Hedging(after_seconds=1, share=1.5), "share must be above 0 and at most 1, is 1.5"),
    ],
)
def test_options_that_grpc_would_not_take_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
