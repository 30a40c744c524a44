"""The durable log of feedback on real SQLite and real PostgreSQL: what was acknowledged is there, once."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text

from serving.attribution import Attribution
from serving.feedback import FeedbackBusy, FeedbackEvent, FeedbackLog, Outcome, Recorded, counts
from serving.feedback_tables import ANSWERS, EVENTS, FeedbackUnavailable, opened
from serving.request import Place, RequestContext

# Eight callers bring events without end, each request twice, and say which were acknowledged.
BRING = """
import itertools, os, sys, threading
from tests.serving.test_feedback import brought
from serving.feedback import FeedbackLog

log, run = FeedbackLog(sys.argv[1]), sys.argv[2]

def bring(caller):
    for number in itertools.count():
        events = brought(f"{run}-{caller}-{number}", 3)
        log.record(events)
        os.write(1, "".join(f"{one.event_id}\\n" for one in events).encode())
        log.record(events)

for caller in range(8):
    threading.Thread(target=bring, args=(caller,)).start()
"""


def brought(name: str, count: int, outcome: Outcome = Outcome.SHOWN) -> list[FeedbackEvent]:
    """Events of one answer that bears the name."""
    context = RequestContext(
        user_id="u1", scenario_id="search", time_us=10, place=Place(60.0, 25.0), scene_inputs={"weather": "rain"}
    )
    answer = Attribution(answer_id=name, bundle="b", dataset="city", context=context)
    return [
        FeedbackEvent(
            event_id=f"{name}/{at}", answer=answer, poi_id=f"p{at}", outcome=outcome, position=at, time_us=20 + at
        )
        for at in range(count)
    ]


def test_callers_that_count_alike_lose_nothing(url: str) -> None:
    log = FeedbackLog(url)
    first, second = ([replace(one, event_id=str(n)) for n, one in enumerate(brought(name, 3))] for name in "ab")
    assert log.record([*first, *second]) == Recorded(new=6, repeated=0)
    assert log.record([*second, *first]) == Recorded(new=0, repeated=6)
    log.close()
    assert stored(url) == ["0", "0", "1", "1", "2", "2"]


def stored(url: str) -> list[str]:
    with create_engine(url).connect() as db:
        return sorted(db.execute(select(EVENTS.c.event_id)).scalars())


def test_events_and_their_answer_are_kept(url: str) -> None:
    log = FeedbackLog(url)
    assert log.record(brought("a", 1200)) == Recorded(new=1200, repeated=0)  # more than one statement takes
    assert log.record(brought("b", 1, Outcome.ORDERED)) == Recorded(new=1, repeated=0)
    log.close()
    engine = create_engine(url)
    with engine.connect() as db:
        answer = db.execute(select(ANSWERS).where(ANSWERS.c.answer_id == "a")).mappings().one()
        event = db.execute(select(EVENTS).where(EVENTS.c.event_id == "a/7")).mappings().one()
    assert dict(answer) == {
        "answer_id": "a",
        "bundle": "b",
        "dataset": "city",
        "user_id": "u1",
        "scenario_id": "search",
        "time_us": 10,
        "latitude": 60.0,
        "longitude": 25.0,
        "scene_inputs": '{"weather": "rain"}',
    }
    assert (event["answer_id"], event["poi_id"], event["outcome"], event["position"]) == ("a", "p7", "shown", 7)
    assert event["time_us"] == 27 and abs(event["received_us"] / 1e6 - time.time()) < 60
    assert counts(engine) == {"shown": 1200, "clicked": 0, "ordered": 1}


def test_a_log_of_before_propensities_goes_on(url: str) -> None:
    engine = opened(url)
    with engine.begin() as db:
        db.execute(text("ALTER TABLE feedback_events DROP COLUMN propensity"))
        db.execute(text("INSERT INTO feedback_events VALUES ('a', 'old', 'p', 'shown', 0, 5, 6)"))
    log = FeedbackLog(url)
    log.record([replace(one, propensity=0.25) for one in brought("new", 1)])
    log.close()
    with engine.connect() as db:
        found = dict(db.execute(select(EVENTS.c.event_id, EVENTS.c.propensity)).all())
    assert found == {"old": None, "new/0": 0.25}


def test_an_event_counts_once(url: str) -> None:
    log = FeedbackLog(url)
    first, other = brought("a", 3), brought("c", 2)
    assert log.record(first) == Recorded(new=3, repeated=0)
    assert log.record([*first, *other, other[0]]) == Recorded(new=2, repeated=4)
    log.close()
    again = FeedbackLog(url)  # another server, or this one after a restart
    assert again.record(first) == Recorded(new=0, repeated=3)
    again.close()
    assert stored(url) == ["a/0", "a/1", "a/2", "c/0", "c/1"]


def test_callers_at_once_and_two_servers_share_one_log(url: str) -> None:
    logs = [FeedbackLog(url), FeedbackLog(url)]

    def bring(number: int) -> int:
        return logs[number % 2].record(brought(f"a{number // 4}", 5)).new  # four callers bring the same events

    with ThreadPoolExecutor(16) as pool:
        new = list(pool.map(bring, range(200)))
    for log in logs:
        log.close()
    assert sum(new) == len(stored(url)) == 50 * 5


def test_what_waits_when_a_log_is_closed_is_written(url: str) -> None:
    log = FeedbackLog(url)
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(log.record, brought(f"a{n}", 2)) for n in range(50)]
        log.close()
        acknowledged = sum(r.result().new for r in results if r.exception() is None)
    assert all(isinstance(r.exception(), FeedbackUnavailable) for r in results if r.exception())
    assert len(stored(url)) == acknowledged
    with pytest.raises(FeedbackUnavailable, match="stopping"):
        log.record(brought("late", 1))


def test_a_database_that_is_locked_is_told_and_recovered_from(tmp_path: Path) -> None:
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}", waiting=2, lock_seconds=1.0)
    log.record(brought("z", 1))  # it has its tables
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(12) as pool:
        results = [pool.submit(log.record, brought(f"a{n}", 1)) for n in range(12)]
        kinds = [type(r.exception()) for r in results]
    assert set(kinds) == {FeedbackBusy, FeedbackUnavailable}  # more came than may wait
    with pytest.raises(FeedbackUnavailable, match="in time"):
        log.record(brought("b", 1), timeout_s=0.05)
    other.execute("ROLLBACK")
    time.sleep(1.0)
    assert log.record(brought("a0", 1)).new == 1
    log.close()
    assert stored(f"sqlite:///{tmp_path / 'feedback.db'}")[0] == "a0/0"


def test_a_database_that_hangs_is_given_up_at_the_end(tmp_path: Path) -> None:
    log = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}", lock_seconds=60.0)
    log.record(brought("z", 1))  # it has its tables
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(log.record, brought("a", 1))
        assert not log.close(timeout_s=0.5)
        other.execute("ROLLBACK")
        assert waits.result().new == 1
    assert FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}").close()


def test_servers_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        for number in range(10):
            url = f"sqlite:///{tmp_path / f'{number}.db'}"
            for log in pool.map(FeedbackLog, [url] * 6):
                log.close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://x:secret@nowhere/db",
        "postgresql+psycopg://u:secret@127.0.0.1:1/db",
        "postgresql+psycopg://u@127.0.0.1:secret/db",
        "?",
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    with pytest.raises(FeedbackUnavailable) as refused:
        opened(url)
    assert "secret" not in str(refused.value) and refused.value.__suppress_context__


@pytest.mark.parametrize("url", ["mysql://x:secret@nowhere/db", "postgresql+psycopg://u@127.0.0.1:secret/db", "?"])
def test_a_url_that_names_no_database_is_told_at_once(url: str) -> None:
    with pytest.raises(FeedbackUnavailable) as refused:
        FeedbackLog(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.full)])
def test_nothing_acknowledged_is_lost_by_kill_9_and_nothing_doubled(kills: int, tmp_path: Path) -> None:
    url, rng = f"sqlite:///{tmp_path / 'feedback.db'}", random.Random(kills)
    acknowledged: set[str] = set()
    for run in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", BRING, url, str(run)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            acknowledged.add(process.stdout.readline().strip())
            time.sleep(rng.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split("\n")
        acknowledged |= set(lines[:-1]) - {""}  # the last line may be cut
    there = stored(url)
    assert len(acknowledged) > 100 * kills / 8
    assert acknowledged <= set(there)
    requests = {event_id.rpartition("/")[0] for event_id in there}
    assert len(there) == 3 * len(requests)  # requests are there as a whole
    with sqlite3.connect(tmp_path / "feedback.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {answer for (answer,) in db.execute("SELECT answer_id FROM answers")} == requests
