"""Splits are in time order and cover every row, whatever the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.datasets import splits
from feature_repo.datasets.frames import MICROSECONDS
from feature_repo.datasets.schema import PARTS, DataError, Split

START = datetime(2024, 1, 1, tzinfo=UTC)
DEFAULT = (0.4, 0.4, 0.1, 0.1)


def series(seconds: list[int]) -> pl.Series:
    return pl.Series([START + timedelta(seconds=s) for s in seconds], dtype=MICROSECONDS)


def counts(times: list[datetime], split: Split) -> dict[str, int]:
    """Rows in each part by its bounds."""
    bounds = {part: split.bounds(part) for part in PARTS}
    return {p: sum((low is None or low <= t) and t < high for t in times) for p, (low, high) in bounds.items()}


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60))
def test_fractions_cover_every_row_once(seconds: list[int]) -> None:
    times = series(seconds)
    split = splits.by_fractions(times, DEFAULT)
    assert split.train <= split.valid <= split.test <= split.end
    assert sum(counts(times.to_list(), split).values()) == len(seconds)


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=60))
def test_days_and_months_cover_every_row_once(seconds: list[int]) -> None:
    times = [START, *(START + timedelta(seconds=s) for s in sorted(seconds)), START + timedelta(days=200)]
    for rule in (splits.by_days, splits.by_months):
        split = rule(min(times), max(times), "America/New_York")
        assert split.train < split.valid < split.test < split.end
        found = counts(times, split)
        assert sum(found.values()) == len(times)
        assert found["history"] >= 1 and found["test"] >= 1


def test_fractions_of_distinct_times_are_exact() -> None:
    times = series(list(range(100)))
    assert counts(times.to_list(), splits.by_fractions(times, DEFAULT)) == {
        "history": 40,
        "train": 40,
        "valid": 10,
        "test": 10,
    }


def test_days_by_hand() -> None:
    """Six local days: three of history, one to train... the last two are valid and test."""
    first, last = datetime(2022, 4, 24, 15, 5, tzinfo=UTC), datetime(2022, 4, 30, 15, 2, tzinfo=UTC)
    split = splits.by_days(first, last, "Asia/Shanghai")
    assert split == Split(
        train=datetime(2022, 4, 26, 16, tzinfo=UTC),
        valid=datetime(2022, 4, 28, 16, tzinfo=UTC),
        test=datetime(2022, 4, 29, 16, tzinfo=UTC),
        end=datetime(2022, 4, 30, 16, tzinfo=UTC),
    )


def test_months_by_hand_follow_the_local_clock() -> None:
    first, last = datetime(2012, 4, 3, tzinfo=UTC), datetime(2013, 1, 1, 4, tzinfo=UTC)  # still December there
    split = splits.by_months(first, last, "America/New_York")
    assert split == Split(
        train=datetime(2012, 6, 1, 4, tzinfo=UTC),
        valid=datetime(2012, 11, 1, 4, tzinfo=UTC),
        test=datetime(2012, 12, 1, 5, tzinfo=UTC),
        end=datetime(2013, 1, 1, 5, tzinfo=UTC),
    )


def log(rows: list[tuple[str, int]]) -> pl.DataFrame:
    """Rows (user, seconds)."""
    return pl.DataFrame(
        {columns.USER_ID: [user for user, _ in rows], columns.EVENT_TIMESTAMP: series([s for _, s in rows])}
    )


def test_users_are_cut_at_their_own_times_by_hand() -> None:
    """One user rates ten films in ten seconds of January; another ten later, five of them in one second."""
    rows = [("early", second) for second in range(10)]
    rows += [("late", 1000 + second) for second in (0, 1, 2, 3, 4, 9, 9, 9, 9, 9)]
    split, borders = splits.by_user(log(rows[::-1]), (0.7, 0.1, 0.2))
    moments = {name: START + timedelta(seconds=at) for name, at in (("e7", 7), ("e8", 8), ("l", 1009))}
    assert borders.rows() == [("early", moments["e7"], moments["e8"]), ("late", moments["l"], moments["l"])]
    end = START + timedelta(seconds=1009) + splits.TICK
    assert split == Split(train=START, valid=end, test=end, end=end)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), min_size=1, max_size=60))
def test_no_row_of_a_user_is_tested_before_one_that_is_trained_on(rows: list[tuple[str, int]]) -> None:
    _, borders = splits.by_user(log(rows), (0.7, 0.1, 0.2))
    of_user = {user: (valid, test) for user, valid, test in borders.rows()}
    assert set(of_user) == {user for user, _ in rows}
    for user, (valid, test) in of_user.items():
        times = [START + timedelta(seconds=s) for u, s in rows if u == user]
        assert valid <= test
        # The border is the time of the first row of the last fifth: it holds that much, and more only by ties.
        assert sum(t >= test for t in times) >= 0.2 * len(times) > sum(t > test for t in times)


def test_refusals() -> None:
    with pytest.raises(DataError, match="need 3 positive shares"):
        splits.by_user(log([("a", 1)]), (0.7, 0.3, 0.0))
    with pytest.raises(DataError, match="no rows"):
        splits.by_user(log([]), (0.7, 0.1, 0.2))
    with pytest.raises(DataError, match="sum 1"):
        splits.by_fractions(series([1]), (0.5, 0.5, 0.1, 0.1))
    with pytest.raises(DataError, match="no rows"):
        splits.by_fractions(series([]), DEFAULT)
    with pytest.raises(DataError, match="need 4 days"):
        splits.by_days(START, START + timedelta(days=2), "UTC")
    with pytest.raises(DataError, match="need 4 months"):
        splits.by_months(START, START + timedelta(days=60), "UTC")
