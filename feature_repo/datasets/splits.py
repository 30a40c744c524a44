"""Borders between history | train | valid | test: a log is always cut by time, never by drawing rows.

Three rules cover the public logs: shares of the rows in time order, whole local days, and whole local months (so that
the test part is "the last day" or "the last month"). A fourth gives each user borders of their own, so that everybody's
last rows are tested: values of a row are still of its past, but a model has learnt from what others did later.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from feature_repo import columns
from feature_repo.datasets.schema import PARTS, DataError, Split

TICK = timedelta(microseconds=1)


def by_fractions(times: pl.Series, fractions: tuple[float, ...]) -> Split:
    """Cut n times (UTC) into the four parts by their shares of the rows.

    A border is the time of the first row of its part, so that rows with equal times stay together and a part may get
    a little more or less than its share. Raises DataError for an empty log and for shares that are not four positive
    numbers with the sum 1.
    """
    if len(fractions) != len(PARTS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise DataError(f"split fractions {list(fractions)}: need {len(PARTS)} positive shares with the sum 1")
    if times.is_empty():
        raise DataError("split: the log has no rows; a dataset needs at least one impression")
    ordered = times.sort()
    shares = (sum(fractions[:part]) for part in range(1, len(PARTS)))
    train, valid, test = (ordered[min(int(share * len(ordered) + 1e-9), len(ordered) - 1)] for share in shares)
    return Split(train=train, valid=valid, test=test, end=ordered[-1] + TICK)


def by_days(first: datetime, last: datetime, timezone: str) -> Split:
    """Test is the last local day, valid the day before, history the first half (rounded up) of the days before these.

    Args:
        first, last: times of the first and the last impression, UTC.
    Raises:
        DataError: they touch fewer than four local days.
    """
    zone = ZoneInfo(timezone)
    start, final = first.astimezone(zone).date(), last.astimezone(zone).date()
    before = (final - start).days - 1
    if before < 2:
        raise DataError(f"split by days: the log covers {start} .. {final}; history, train, valid and test need 4 days")
    train = start + timedelta(days=(before + 1) // 2)
    return Split(
        train=midnight(train, zone),
        valid=midnight(final - timedelta(days=1), zone),
        test=midnight(final, zone),
        end=midnight(final + timedelta(days=1), zone),
    )


def by_months(first: datetime, last: datetime, timezone: str) -> Split:
    """Test is the last local month, valid the month before, history the first two months (one if there are just four).

    Args:
        first, last: times of the first and the last impression, UTC.
    Raises:
        DataError: they touch fewer than four local months.
    """
    zone = ZoneInfo(timezone)
    start, final = (12 * d.year + d.month - 1 for d in (first.astimezone(zone), last.astimezone(zone)))
    if final - start < 3:
        raise DataError(
            f"split by months: the log covers {first:%Y-%m} .. {last:%Y-%m}; history, train, valid, test need 4 months"
        )
    train = min(start + 2, final - 2)
    borders = (midnight(date(m // 12, m % 12 + 1, 1), zone) for m in (train, final - 1, final, final + 1))
    return Split(**dict(zip(("train", "valid", "test", "end"), borders, strict=True)))


def by_user(log: pl.DataFrame, fractions: tuple[float, float, float]) -> tuple[Split, pl.DataFrame]:
    """Cut the rows of each user, in time order, into train, valid and test by their shares; there is no history.

    A border is the time of the first row of its part, so that rows of one moment stay together: a user all of whose
    rows are of one moment has test rows only.

    Returns:
        the split of a log with borders, and the borders, a row a user (`schema.USER_BORDERS`).
    Raises:
        DataError: an empty log, or shares that are not three positive numbers with the sum 1.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise DataError(f"split fractions {list(fractions)} of each user: need 3 positive shares with the sum 1")
    if log.is_empty():
        raise DataError("split: the log has no rows; a dataset needs at least one impression")
    time = pl.col(columns.EVENT_TIMESTAMP)
    train, valid = fractions[0], fractions[0] + fractions[1]

    def border(share: float) -> pl.Expr:
        return time.sort().get((share * pl.len() + 1e-9).floor().cast(pl.Int64))

    borders = log.group_by(columns.USER_ID).agg(border(train).alias("valid"), border(valid).alias("test"))
    first, last = log[columns.EVENT_TIMESTAMP].sort()[[0, -1]]
    end = last + TICK
    return Split(train=first, valid=end, test=end, end=end), borders.sort(columns.USER_ID)


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The UTC time at which a local day begins."""
    return datetime.combine(day, time(), tzinfo=zone).astimezone(ZoneInfo("UTC"))
