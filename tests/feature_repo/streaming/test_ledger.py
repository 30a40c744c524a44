"""What was dealt with is on record as a whole or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from feature_repo.streaming.click import Click
from feature_repo.streaming.ledger import Ledger, Rejected
from feature_repo.streaming.source import Message

START = datetime(2026, 3, 1, tzinfo=UTC)


def click(event_id: str, days: int = 0) -> Click:
    return Click(event_id=event_id, user_id="u", poi_id="p", time=START + timedelta(days=days))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'stream.db'}"


def test_positions_and_ids_outlive_the_process(url):
    ledger = Ledger(url)
    assert ledger.position("a") is None
    ledger.commit("a", "7", [click("e1"), click("e2")], [])
    ledger.commit("b", "1", [], [])
    ledger.commit("a", "9", [click("e3")], [])
    again = Ledger(url)
    assert (again.position("a"), again.position("b")) == ("9", "1")
    assert again.seen([f"e{n}" for n in range(2000)]) == {"e1", "e2", "e3"}


def test_a_step_that_fails_leaves_nothing(url):
    ledger = Ledger(url)
    ledger.commit("a", "7", [click("e1")], [])
    with pytest.raises(IntegrityError):
        ledger.commit("a", "9", [click("e2"), click("e1")], [Rejected(Message("8", b"?"), "why")])
    assert ledger.position("a") == "7" and ledger.seen(["e2"]) == set() and ledger.rejected() == []


def test_what_was_rejected_is_kept_once_with_its_reason(url):
    ledger = Ledger(url)
    bad = Rejected(Message("8", b"\xff?"), "no JSON")
    for _ in range(2):
        ledger.commit("a", "8", [], [bad])
    ledger.commit("a", "8", [], [other := Rejected(Message("8", b"of another file"), "no JSON")])
    assert ledger.rejected() == [bad, other]


def test_ids_are_forgotten_after_a_while(url):
    ledger = Ledger(url, remember_days=30)
    ledger.commit("a", "1", [click("old"), click("edge", days=1)], [])
    ledger.commit("a", "2", [click("new", days=31)], [])
    assert ledger.seen(["old", "edge", "new"]) == {"edge", "new"}
