"""What a server acknowledged is there, once, however often it is killed: over gRPC, server after server."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import grpc
import pytest

from serving.client import Access, Asker, Happened, Recommender
from serving.feedback_tables import URL_VARIABLE
from serving.tries import Retries
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc

CALLERS = 6  # every third one on a stream
EVENTS = 3  # of a request


@dataclass
class Caller:
    """Brings events without end, each request twice; what a server did not acknowledge, first of all to the next one.

    Attributes:
        sent, acknowledged: ids of events.
        unsure: what the last server may have stored or not.
    """

    name: str
    on_stream: bool
    asker: Asker
    poi_ids: Sequence[str]
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    unsure: list[Happened] = field(default_factory=list)

    def bring(self, address: str, first: threading.Event) -> None:
        """Until the server is gone; sets the event when something was acknowledged."""
        patient = Access(timeout_seconds=30)
        with Recommender(address, patient, retries=Retries(tries=1)) as client, grpc.insecure_channel(address) as wire:
            try:
                token = client.rank(self.asker, self.poi_ids).attribution_token
                stub = pb_grpc.RecommenderServiceStub(wire)
                told = self._told(token, turn := threading.Semaphore(0))
                answers = stub.RecordFeedbackStream(told) if self.on_stream else self._asked(client, token)
                for answer in answers:
                    self._taken(answer)
                    turn.release()
                    first.set()
            except grpc.RpcError as gone:
                assert gone.code() is grpc.StatusCode.UNAVAILABLE, gone

    def _asked(self, client: Recommender, token: str) -> Iterator[pb.RecordFeedbackResponse]:
        for events in self._requests(token):
            yield client.record(events)

    def _told(self, token: str, turn: threading.Semaphore) -> Iterator[pb.RecordFeedbackRequest]:
        for events in self._requests(token):
            yield pb.RecordFeedbackRequest(events=[one.message() for one in events])
            if not turn.acquire(timeout=30):
                return

    def _requests(self, token: str) -> Iterator[list[Happened]]:
        if self.unsure:
            yield self.unsure
        for number in count(len(self.sent)):
            self.unsure = [
                Happened(
                    token=token,
                    poi_id=self.poi_ids[at],
                    outcome="shown",
                    position=at,
                    time=self.asker.time,
                    event_id=f"{self.name}-{number}/{at}",
                )
                for at in range(EVENTS)
            ]
            self.sent |= {one.event_id for one in self.unsure}
            yield self.unsure
            yield self.unsure

    def _taken(self, answer: pb.RecordFeedbackResponse) -> None:
        ids = {one.event_id for one in self.unsure}
        if ids <= self.acknowledged:
            assert (answer.recorded, answer.repeated) == (0, EVENTS)
        assert answer.recorded in (0, EVENTS), "requests are stored as a whole"
        assert answer.recorded + answer.repeated == EVENTS
        self.acknowledged |= ids


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(3600)])])
def test_nothing_that_a_server_acknowledged_is_lost_by_kill_9_and_nothing_doubled(
    kills, workspace, project_in, asker, poi_ids, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"sqlite:///{tmp_path / 'feedback.db'}")
    project, draw = project_in(workspace.root), random.Random(kills)
    callers = [Caller(f"caller-{n}", n % 3 == 0, asker, poi_ids[:EVENTS]) for n in range(CALLERS)]
    for _ in range(kills):
        first = threading.Event()
        with (
            project.served("--bundle", "larr", "--unproven") as served,
            ThreadPoolExecutor(CALLERS) as pool,
        ):
            brought = [pool.submit(caller.bring, served.address, first) for caller in callers]
            assert first.wait(60)
            time.sleep(draw.uniform(0.0, 1.0))
            served.process.send_signal(signal.SIGKILL)
            assert served.process.wait(30) == -signal.SIGKILL
            for one in brought:
                one.result(60)
    with sqlite3.connect(tmp_path / "feedback.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = Counter(event_id for (event_id,) in db.execute("SELECT event_id FROM feedback_events"))
        loose = "SELECT count(*) FROM feedback_events WHERE answer_id NOT IN (SELECT answer_id FROM answers)"
        assert db.execute(loose).fetchone() == (0,)
    acknowledged = set().union(*(caller.acknowledged for caller in callers))
    assert len(acknowledged) > 5 * EVENTS * kills
    assert acknowledged <= there.keys() <= set().union(*(caller.sent for caller in callers))
    assert set(there.values()) == {1}
    assert set(Counter(event_id.rpartition("/")[0] for event_id in there).values()) == {EVENTS}
