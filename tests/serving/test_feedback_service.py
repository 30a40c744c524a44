"""Feedback over a socket: what became of an answer, by its token; and what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import create_engine, select

from serving.client import Access, Asker, AsyncRecommender, Happened, Recommender, Wish, shown, violations
from serving.feedback import FeedbackLog
from serving.feedback_tables import ANSWERS, EVENTS
from serving.opening import open_pipeline
from serving.server import ServerOptions, create_server
from serving.tries import Retries
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.serving.conftest import refused


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('feedback') / 'feedback.db'}"


@pytest.fixture(scope="module")
def address(pipeline, url) -> Iterator[str]:
    log = FeedbackLog(url)
    server = create_server(pipeline, ServerOptions(workers=4), log)
    yield f"127.0.0.1:{server.port}"
    server.stop()
    log.close()


@pytest.fixture
def client(address) -> Iterator[Recommender]:
    with Recommender(address) as client:
        yield client


@pytest.fixture
def ranking(client, asker, poi_ids) -> pb.Ranking:
    return client.rank(asker, poi_ids[:5])


def said_when(error: grpc.RpcError) -> set[float]:
    """The seconds after which to come again: those of the status, and those that gRPC itself follows."""
    hint, status = error_details_pb2.RetryInfo(), rpc_status.from_call(error)
    assert status is not None and status.details[0].Unpack(hint)
    pushback_ms = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    return {hint.retry_delay.ToMicroseconds() / 1e6, pushback_ms / 1e3}


class Held:
    """A stream that was answered once and then says nothing, until it is ended."""

    def __init__(self, stub: pb_grpc.RecommenderServiceStub, first: pb.RecordFeedbackRequest) -> None:
        self._ended = threading.Event()
        self.answers = stub.RecordFeedbackStream(self._requests(first), timeout=60)
        next(self.answers)

    def _requests(self, first: pb.RecordFeedbackRequest) -> Iterator[pb.RecordFeedbackRequest]:
        yield first
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        assert list(self.answers) == []


def test_what_became_of_an_answer_is_kept_under_its_token(client, ranking, asker, url, moment):
    seen = shown(ranking, moment)
    click = Happened(token=ranking.attribution_token, poi_id=ranking.poi_ids[2], outcome="clicked", time=moment)
    assert client.record(seen) == pb.RecordFeedbackResponse(recorded=5, repeated=0)
    assert client.record([seen[0], click]) == pb.RecordFeedbackResponse(recorded=1, repeated=1)
    with create_engine(url).connect() as db:
        events = {row["event_id"]: row for row in db.execute(select(EVENTS)).mappings()}
        answer_id = events[click.event_id]["answer_id"]
        answer = db.execute(select(ANSWERS).where(ANSWERS.c.answer_id == answer_id)).mappings().one()
    kept = [events[one.event_id] for one in seen]
    assert [(row["poi_id"], row["position"]) for row in kept] == list(zip(ranking.poi_ids, range(5), strict=True))
    assert {row["answer_id"] for row in kept} == {answer_id}
    assert (answer["user_id"], answer["scenario_id"]) == (asker.user_id, asker.scenario_id)
    assert (answer["latitude"], answer["longitude"]) == asker.place
    assert answer["time_us"] == int(moment.timestamp() * 1e6)
    assert answer["bundle"] == ranking.model.version


def test_asyncio_records_too(address, ranking, moment):
    async def record() -> pb.RecordFeedbackResponse:
        async with AsyncRecommender(address) as client:
            return await client.record(shown(ranking, moment))

    assert asyncio.run(record()).recorded == 5


def test_the_time_is_now_unless_it_is_said(client, ranking, url):
    one = Happened(token=ranking.attribution_token, poi_id="p", outcome="ordered")
    assert client.record([one]).recorded == 1
    with create_engine(url).connect() as db:
        event = db.execute(select(EVENTS).where(EVENTS.c.event_id == one.event_id)).mappings().one()
    assert event["time_us"] <= event["received_us"] < event["time_us"] + 60_000_000
    assert event["position"] is None


def test_a_call_without_a_deadline_is_answered(address, client, ranking, moment, asker, poi_ids):
    message = pb.RecordFeedbackRequest(events=[one.message() for one in shown(ranking, moment)])
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        assert stub.RecordFeedback(message).recorded == 5
        asked = [stub.Rank.future(pb.RankRequest(context=asker.message(), poi_ids=poi_ids)) for _ in range(12)]
        assert all(one.result().ranking.poi_ids for one in asked)  # more than work at a time: some wait


def test_what_is_told_of_a_thousand_broken_events_fits_into_a_status(client, ranking):
    error = refused(lambda: client.record([Happened(token="?", poi_id="p", outcome="shown")] * 1000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(violations(error)) == 20 and "980 more" in error.details()


def test_every_broken_rule_is_named_and_nothing_is_kept(address, client, ranking, moment, url):
    good, token = shown(ranking, moment)[0], ranking.attribution_token
    earlier = moment - timedelta(seconds=1)
    bad = [
        good,
        Happened(token="nonsense", poi_id="p", outcome="shown"),
        Happened(token=token, poi_id="", outcome="shown", position=1000, event_id="e" * 257),
        Happened(token=token, poi_id="p", outcome="clicked", time=earlier),
        Happened(token=token, poi_id="p\0", outcome="clicked", time=moment),
    ]
    error = refused(lambda: client.record(bad))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violations(error)) == {
        "events[1].attribution_token",
        "events[2].event_id",
        "events[2].poi_id",
        "events[2].position",
        "events[3].time",
        "events[4].poi_id",
    }
    message = pb.RecordFeedbackRequest(events=[good.message()])
    message.events[0].outcome = pb.OUTCOME_UNSPECIFIED
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        assert "events[0].outcome" in violations(refused(lambda: stub.RecordFeedback(message)))
    assert "events" in violations(refused(lambda: client.record([])))
    assert "events" in violations(refused(lambda: client.record([good] * 1001)))
    with create_engine(url).connect() as db:
        assert not db.execute(select(EVENTS).where(EVENTS.c.event_id == good.event_id)).all()


def test_a_stream_is_answered_request_by_request_in_order(address, ranking, moment):
    seen = shown(ranking, moment)
    messages = [pb.RecordFeedbackRequest(events=[one.message() for one in seen[: n + 1]]) for n in range(5)]
    with grpc.insecure_channel(address) as channel:
        answers = list(pb_grpc.RecommenderServiceStub(channel).RecordFeedbackStream(iter(messages), timeout=30))
        assert [(a.recorded, a.repeated) for a in answers] == [(1, n) for n in range(5)]
        wrong = pb.RecordFeedbackRequest(events=[Happened(token="?", poi_id="p", outcome="shown").message()])
        call = pb_grpc.RecommenderServiceStub(channel).RecordFeedbackStream(iter([messages[0], wrong]), timeout=30)
        assert next(call).repeated == 1
        error = refused(lambda: next(call))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and violations(error)


def test_both_clients_stream(address, client, ranking, moment):
    seen = shown(ranking, moment)
    batches = [seen[: n + 1] for n in range(5)]
    assert [(a.recorded, a.repeated) for a in client.record_stream(iter(batches))] == [(1, n) for n in range(5)]
    error = refused(lambda: list(client.record_stream([seen, [replace(seen[0], token="?")]])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and violations(error)

    async def again() -> list[int]:
        async def each() -> AsyncIterator[list[Happened]]:
            for batch in batches:
                yield batch

        async with AsyncRecommender(address) as other:
            return [answer.repeated async for answer in other.record_stream(each())]

    assert asyncio.run(again()) == [1, 2, 3, 4, 5]


def test_only_so_many_streams_are_open_and_rankings_go_on(pipeline, asker, poi_ids, moment, tmp_path: Path):
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    server = create_server(pipeline, ServerOptions(workers=1, waiting=0), log)
    address = f"127.0.0.1:{server.port}"
    with Recommender(address) as client, grpc.insecure_channel(address) as channel:
        first = pb.RecordFeedbackRequest(
            events=[one.message() for one in shown(client.rank(asker, poi_ids[:5]), moment)]
        )
        stub = pb_grpc.RecommenderServiceStub(channel)
        held = [Held(stub, first) for _ in range(16)]  # whatever the number of workers
        error = refused(lambda: next(stub.RecordFeedbackStream(iter([first]), timeout=30)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and said_when(error) == {1.0}
        assert client.rank(asker, poi_ids[:3]).poi_ids
        for one in held:
            one.end()
        assert next(stub.RecordFeedbackStream(iter([first]), timeout=30)).repeated == 5
    server.stop()
    log.close()


def test_how_many_streams_may_be_open_is_an_option_of_serve(workspace, project_in, asker, poi_ids, moment):
    with (
        project_in(workspace.root).served("--unproven", "--workers", "1", "--feedback-streams", "3") as served,
        Recommender(served.address) as client,
        grpc.insecure_channel(served.address) as channel,
    ):
        first = pb.RecordFeedbackRequest(
            events=[one.message() for one in shown(client.rank(asker, poi_ids[:5]), moment)]
        )
        stub = pb_grpc.RecommenderServiceStub(channel)
        held = [Held(stub, first) for _ in range(3)]
        error = refused(lambda: next(stub.RecordFeedbackStream(iter([first]), timeout=30)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for one in held:
            one.end()


def test_a_stop_ends_idle_streams_and_answers_what_has_come(pipeline, asker, poi_ids, moment, tmp_path: Path):
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    server = create_server(pipeline, ServerOptions(workers=4), log)
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    with Recommender(f"127.0.0.1:{server.port}") as client:
        seen = [one.message() for one in shown(client.rank(asker, poi_ids[:2]), moment)]
    sent, more = threading.Event(), threading.Event()

    def requests() -> Iterator[pb.RecordFeedbackRequest]:
        yield pb.RecordFeedbackRequest(events=seen[:1])
        more.wait(30)
        yield pb.RecordFeedbackRequest(events=seen[1:])
        sent.set()
        threading.Event().wait(30)

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        idle = Held(stub, pb.RecordFeedbackRequest(events=seen[:1]))
        busy = stub.RecordFeedbackStream(requests(), timeout=60)
        assert next(busy).repeated == 1
        other.execute("BEGIN IMMEDIATE")  # what comes now cannot be stored yet
        more.set()
        sent.wait(30)
        time.sleep(0.3)  # it is in the server's hands
        with ThreadPoolExecutor(1) as pool:
            told = time.monotonic()
            stopped = pool.submit(server.stop)
            assert refused(lambda: next(idle.answers)).code() is grpc.StatusCode.UNAVAILABLE
            assert not stopped.done() and time.monotonic() - told < 3.0
            other.execute("ROLLBACK")
            assert next(busy).recorded == 1
            assert refused(lambda: next(busy)).code() is grpc.StatusCode.UNAVAILABLE
            assert stopped.result() and time.monotonic() - told < 6.0  # of ten seconds of grace
    log.close()


def test_a_token_outlives_the_server_that_gave_it(workspace, ranking, moment, url, address):
    bundle = workspace.bundles / "larr"
    log = FeedbackLog(url)
    another = create_server(open_pipeline(workspace, bundle, None, unproven=True), ServerOptions(), log)
    with Recommender(f"127.0.0.1:{another.port}") as client:
        assert client.record(shown(ranking, moment)).recorded == 5
    another.stop()
    log.close()


def test_a_server_without_a_log_says_so(pipeline, ranking):
    server = create_server(pipeline, ServerOptions())
    with Recommender(f"127.0.0.1:{server.port}") as client:
        error = refused(lambda: client.record(shown(ranking)))
    server.stop()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_log_that_is_closed_is_unavailable(pipeline, ranking, moment, tmp_path: Path):
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    server = create_server(pipeline, ServerOptions(), log)
    log.close()
    with Recommender(f"127.0.0.1:{server.port}") as client:
        error = refused(lambda: client.record(shown(ranking, moment)))
        assert client.rank(Asker(user_id="u1", scenario_id="lunch_deals"), ["p"], Wish()).poi_ids == ["p"]
    server.stop()
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_rankings_go_on_where_the_database_does_not(pipeline, asker, poi_ids, ranking, moment, tmp_path: Path):
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}", lock_seconds=8.0)
    server = create_server(pipeline, ServerOptions(workers=2, waiting=2), log)
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def record(number: int) -> grpc.StatusCode | None:
        try:
            client.record([shown(ranking, moment)[0]])
        except grpc.RpcError as error:
            assert said_when(error) == {1.0}
            return error.code()
        return None

    once = Retries(tries=1)
    with Recommender(f"127.0.0.1:{server.port}", Access(timeout_seconds=30), retries=once) as client:
        with ThreadPoolExecutor(120) as pool:
            held = [pool.submit(record, number) for number in range(120)]
            wait(held, return_when=FIRST_COMPLETED)  # as many wait as may
            with Recommender(f"127.0.0.1:{server.port}", Access(timeout_seconds=4)) as another:
                assert another.rank(asker, poi_ids[:3]).poi_ids
            other.execute("ROLLBACK")
            codes = {call.result() for call in held}
        assert codes == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
    server.stop()
    log.close()
