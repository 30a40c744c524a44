from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import hours


def test_round_trip_of_every_single_hour():
    for hour in range(hours.HOURS_A_WEEK):
        table = np.zeros(hours.HOURS_A_WEEK, dtype=bool)
        table[hour] = True
        assert hours.decode(hours.encode(table)).nonzero()[0].tolist() == [hour]


@pytest.mark.parametrize("text", ["", "ff", "z" * 42])
def test_what_is_no_week_is_refused(text):
    with pytest.raises(ValueError):
        hours.decode(text)


def test_open_closed_and_unknown():
    table = np.zeros(hours.HOURS_A_WEEK, dtype=bool)
    table[9:17] = True  # Monday, office hours
    text = hours.encode(table)
    values = hours.is_open([text, text, None, ""], np.array([9, 17, 9, 9]))
    assert values[0] == 1.0 and values[1] == 0.0 and np.isnan(values[2:]).all()


def test_the_hour_of_the_week_follows_the_local_clock_through_daylight_saving():
    # Helsinki, Sunday 2015-03-29: 02:59:59 local is followed by 04:00.
    before = np.datetime64("2015-03-29T00:59:59", "us").astype(np.int64)
    after = np.datetime64("2015-03-29T01:00:00", "us").astype(np.int64)
    assert hours.hour_of_week(np.array([before, after]), "Europe/Helsinki").tolist() == [6 * 24 + 2, 6 * 24 + 4]


ZONES = ("UTC", "Europe/Helsinki", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Asia/Shanghai")


@given(st.lists(st.integers(0, 4_000_000_000_000_000), max_size=20), st.sampled_from(ZONES))
def test_the_local_clock_is_that_of_pandas(times, zone):
    # By the zone's name pandas knows no summer time after the year 2037.
    clock = pd.to_datetime(pd.Series(times, dtype="int64"), unit="us", utc=True).dt.tz_convert(ZoneInfo(zone))
    assert (
        hours.hour_of_week(np.array(times, dtype=np.int64), zone).tolist()
        == (clock.dt.dayofweek * 24 + clock.dt.hour).tolist()
    )
    assert hours.local_times(times, zone) == [time.to_pydatetime() for time in clock.dt.tz_localize(None)]
