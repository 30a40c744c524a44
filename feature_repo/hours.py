"""Opening hours as 168 bits, one for each hour of the local week from Monday 00:00, written as 42 hex digits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

HOURS_A_WEEK = 168
MINUTE_US = 60_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def encode(open_hours: np.ndarray) -> str:
    """168 booleans -> 42 hex digits.

    >>> encode(np.ones(168, dtype=bool))[:6]
    'ffffff'
    """
    if open_hours.shape != (HOURS_A_WEEK,):
        raise ValueError(f"opening hours need {HOURS_A_WEEK} booleans, got shape {open_hours.shape}")
    return np.packbits(open_hours.astype(bool)).tobytes().hex()


def decode(text: str) -> np.ndarray:
    """42 hex digits -> 168 booleans. Raises ValueError for anything else."""
    if len(text) != HOURS_A_WEEK // 4:
        raise ValueError(f"opening hours need {HOURS_A_WEEK // 4} hex digits, got {text!r}")
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(bool)


def is_open(texts: Sequence[str | None], hour_of_week: np.ndarray) -> np.ndarray:
    """For n POIs and n local hours of the week (0..167), or one for all: 1.0 open, 0.0 closed, NaN where hours are
    unknown."""
    if len(hour_of_week) == 1:  # of a request: the same places are asked for again and again
        hour = int(hour_of_week[0])
        return np.array([_is_open_at(text, hour) if text else np.nan for text in texts], dtype=np.float64)
    codes, known = pd.factorize(np.array([text or None for text in texts], dtype=object))
    tables = np.array([*(decode(text) for text in known), np.full(HOURS_A_WEEK, np.nan)], dtype=np.float64)
    return tables[codes, hour_of_week]  # code -1, no hours, is the last table


@lru_cache(maxsize=1 << 14)
def _is_open_at(text: str, hour: int) -> float:
    return float(decode(text)[hour])


def hour_of_week(times_us: np.ndarray, timezone: str) -> np.ndarray:
    """0 (Monday 00:00) .. 167 by the local clock, int64 (n,), of n times in microseconds since the epoch, UTC."""
    # Clocks differ from UTC by whole minutes, so each minute is looked up once.
    minutes, of_time = np.unique(np.asarray(times_us, dtype=np.int64) // MINUTE_US, return_inverse=True)
    clocks = local_times(minutes * MINUTE_US, timezone)
    found = np.array([clock.weekday() * 24 + clock.hour for clock in clocks], dtype=np.int64)
    return found[of_time.reshape(-1)]


def local_times(times_us: Iterable[int], timezone: str) -> list[datetime]:
    """The local clock at n times in microseconds since the epoch, UTC, without the zone."""
    zone = ZoneInfo(timezone)
    return [(EPOCH + timedelta(microseconds=int(us))).astimezone(zone).replace(tzinfo=None) for us in times_us]
