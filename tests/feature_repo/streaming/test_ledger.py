"""What was dealt with is on record as a whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from feature_repo.streaming.click import Click
from feature_repo.streaming.ledger import Ledger, Overtaken, Rejected
from feature_repo.streaming.source import Message

START = datetime(2026, 3, 1, tzinfo=UTC)


def click(event_id: str, days: int = 0) -> Click:
    return Click(event_id=event_id, user_id="u", poi_id="p", time=START + timedelta(days=days))


def commit(ledger: Ledger, source: str, position: str, clicks: list[Click], rejected: list[Rejected]) -> None:
    with ledger.turn(source, ledger.position(source)) as turn:
        turn.commit(position, clicks, rejected)


def seen(ledger: Ledger, *event_ids: str) -> set[str]:
    with ledger.turn("nobody", None) as turn:
        return turn.seen(event_ids)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'stream.db'}"


def test_positions_and_ids_outlive_the_process(url):
    ledger = Ledger(url)
    assert ledger.position("a") is None
    commit(ledger, "a", "7", [click("e1"), click("e2")], [])
    commit(ledger, "b", "1", [], [])
    commit(ledger, "a", "9", [click("e3")], [])
    again = Ledger(url)
    assert (again.position("a"), again.position("b")) == ("9", "1")
    assert seen(again, *(f"e{n}" for n in range(2000))) == {"e1", "e2", "e3"}


def test_a_step_that_fails_leaves_nothing(url):
    ledger = Ledger(url)
    commit(ledger, "a", "7", [click("e1")], [])
    with pytest.raises(IntegrityError):
        commit(ledger, "a", "9", [click("e2"), click("e1")], [Rejected(Message("8", b"?"), "why")])
    assert ledger.position("a") == "7" and seen(ledger, "e2") == set() and ledger.rejected() == []


def test_what_was_rejected_is_kept_once_with_its_reason(url):
    ledger = Ledger(url)
    bad = Rejected(Message("8", b"\xff?"), "no JSON")
    for _ in range(2):
        commit(ledger, "a", "8", [], [bad])
    commit(ledger, "a", "8", [], [other := Rejected(Message("8", b"of another file"), "no JSON")])
    assert ledger.rejected() == [bad, other]


def test_ids_are_forgotten_after_a_while(url):
    ledger = Ledger(url, remember_days=30)
    commit(ledger, "a", "1", [click("old"), click("edge", days=1)], [])
    commit(ledger, "a", "2", [click("new", days=31)], [])
    assert seen(ledger, "old", "edge", "new") == {"edge", "new"}


def test_who_was_overtaken_is_told_and_changes_nothing(url):
    ledger = Ledger(url)
    commit(ledger, "a", "7", [click("e1")], [])
    for known in (None, "6"):
        with pytest.raises(Overtaken, match="a was read on to 7 by another process"), ledger.turn("a", known) as turn:
            turn.commit("8", [click("e2")], [])
    ledger.forget()
    with pytest.raises(Overtaken, match="again from its beginning"), ledger.turn("a", "7"):
        pass
    assert ledger.position("a") is None and seen(ledger, "e1", "e2") == set()


def test_several_may_open_a_record_that_is_not_there_yet(tmp_path):
    for number in range(20):
        url, ready = f"sqlite:///{tmp_path / str(number)}.db", Barrier(4)
        with ThreadPoolExecutor(4) as threads:
            ledgers = list(threads.map(lambda _, url=url, ready=ready: (ready.wait(), Ledger(url))[1], range(4)))
        assert [ledger.position("a") for ledger in ledgers] == [None] * 4


@pytest.mark.parametrize("position", [None, "7"], ids=["the first", "a later"])
def test_one_step_of_a_source_is_under_way_at_a_time(postgres, position):
    """Also where the processes are on different machines, and a lock on a file says nothing."""
    url = "postgresql+psycopg://{SCENERANK_PG_USER}:{SCENERANK_PG_PASSWORD}@{SCENERANK_PG_HOST}:{SCENERANK_PG_PORT}"
    here, there = (Ledger(url.format(**postgres) + "/postgres") for _ in range(2))
    source = f"from {position}"
    if position is not None:
        commit(here, source, position, [], [])
    with here.turn(source, position) as turn:
        with pytest.raises(OperationalError, match="could not obtain lock"), there.turn(source, position):
            pass
        with there.turn("another", there.position("another")) as other:
            other.commit("1", [], [])
        turn.commit("9", [click(f"e {source}")], [])
    with there.turn(source, "9") as turn:
        assert turn.seen([f"e {source}"])
