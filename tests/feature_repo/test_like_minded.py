"""Scores of like-minded users, by hand and against a plain count of sets."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns, like_minded
from feature_repo.datasets.schema import TIME

MONDAY = datetime(2012, 4, 2, tzinfo=UTC)
Click = tuple[str, str, float, int]  # user, POI, days after the Monday, click


def rows(clicks: list[Click], window_days: int = 365) -> dict[datetime, dict[tuple[str, str], float]]:
    """Monday -> (user, POI) -> score."""
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        events = pa.table(
            {
                columns.USER_ID: pa.array([c[0] for c in clicks], pa.string()),
                columns.POI_ID: pa.array([c[1] for c in clicks], pa.string()),
                columns.OUTCOME_TIMESTAMP: pa.array([MONDAY + timedelta(days=c[2]) for c in clicks], TIME),
                columns.CLICK: pa.array([c[3] for c in clicks], pa.int8()),
            }
        )
        db.register("log", events)
        db.execute("CREATE TEMP TABLE events AS SELECT * FROM log")
        found: dict[datetime, dict[tuple[str, str], float]] = defaultdict(dict)
        for user, poi, when, created, score in db.execute(like_minded.create(db, window_days)).fetchall():
            assert when == created
            found[when.astimezone(UTC)][user, poi] = score
    return found


def test_by_hand():
    # a and b share p; b went to q and r too; c shares nothing; d's click has no weight for who never clicked.
    clicks = [
        ("a", "p", 0, 1),
        ("b", "p", 1, 1),
        ("b", "q", 2, 1),
        ("b", "q", 3, 1),
        ("b", "r", 4, 1),
        ("c", "s", 5, 1),
    ]
    clicks += [("d", "p", 5, 0)]
    found = rows(clicks)
    assert list(found) == [MONDAY + timedelta(days=7)]
    weight = 1 / (1 * 3) ** 0.5
    assert found[MONDAY + timedelta(days=7)] == pytest.approx(
        {("a", "p"): weight, ("a", "q"): weight, ("a", "r"): weight, ("b", "p"): weight}, abs=1e-6
    )


def test_a_week_sees_what_was_known_before_its_monday_and_not_longer_ago_than_the_window():
    clicks = [("a", "p", 0, 1), ("b", "p", 7, 1), ("a", "q", 15, 1), ("b", "q", 16, 1), ("c", "z", 29, 1)]
    found = rows(clicks, window_days=14)
    assert {(at - MONDAY).days: sorted(pois) for at, pois in found.items()} == {
        14: [("a", "p"), ("b", "p")],  # b's click of day 7 is not known on the Monday of day 7
        21: [("a", "p"), ("a", "q"), ("b", "q")],  # a's own click on p is too long ago; b's is left
        28: [("a", "q"), ("b", "q")],
    }


def test_a_poi_that_everybody_goes_to_pairs_nobody(monkeypatch):
    clicks = [(user, "station", 1, 1) for user in "abc"] + [("a", "q", 1, 1)]
    assert rows(clicks)
    monkeypatch.setattr(like_minded, "COMMON", 2)
    assert not rows(clicks)


def test_the_best_are_kept(monkeypatch):
    monkeypatch.setattr(like_minded, "KEPT", 1)
    clicks = [
        ("a", "p", 0, 1),
        ("b", "p", 0, 1),
        ("c", "p", 0, 1),
        ("b", "q", 0, 1),
        ("c", "q", 0, 1),
        ("c", "r", 0, 1),
    ]
    (found,) = rows(clicks).values()
    assert sorted(found) == [("a", "p"), ("b", "p"), ("c", "p")]


def test_nothing_is_known_without_clicks():
    assert not rows([("a", "p", 0, 0)])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("pqrs"), st.floats(0, 30), st.integers(0, 1)), min_size=1
    )
)
def test_equals_a_plain_count_of_sets(clicks: list[Click]):
    found = rows(clicks)
    for week in range(1, 6):
        monday = MONDAY + timedelta(days=7 * week)
        went: dict[str, set[str]] = defaultdict(set)
        for user, poi, day, click in clicks:
            if click and MONDAY + timedelta(days=day) < monday:
                went[user].add(poi)
        expected: dict[tuple[str, str], float] = defaultdict(float)
        for user, mine in went.items():
            for other, theirs in went.items():
                if user != other and mine & theirs:
                    for poi in theirs:
                        expected[user, poi] += len(mine & theirs) / (len(mine) * len(theirs)) ** 0.5
        if monday in found:
            assert found[monday] == pytest.approx(dict(expected), abs=1e-5)
