"""Raw tables: times of many spellings become the one right UTC time, ids are the same text in every file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from feature_repo.datasets.raw import RawTable
from feature_repo.datasets.schema import DataError

NEW_YORK = "America/New_York"


def table(**values: Sequence[object]) -> RawTable:
    return RawTable(file=Path("t.csv"), frame=pl.DataFrame(values))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2012-07-01 12:00", datetime(2012, 7, 1, 16, tzinfo=UTC)),
        ("2012-12-01T12:00:00.25", datetime(2012, 12, 1, 17, 0, 0, 250_000, tzinfo=UTC)),
        ("2012-11-04 01:30", datetime(2012, 11, 4, 5, 30, tzinfo=UTC)),  # repeated hour: the first, in daylight time
        ("2012-03-11 02:30", datetime(2012, 3, 11, 7, tzinfo=UTC)),  # skipped hour: moves forward
        ("2012-07-01T12:00:00+02:00", datetime(2012, 7, 1, 10, tzinfo=UTC)),
        ("2012-07-01 12:00:00Z", datetime(2012, 7, 1, 12, tzinfo=UTC)),
        ("2012-07-01", datetime(2012, 7, 1, 4, tzinfo=UTC)),
    ],
)
def test_iso_times(text: str, wanted: datetime) -> None:
    assert table(t=[text]).times("t", timezone=NEW_YORK).to_list() == [wanted]


def test_times_by_pattern_unit_and_type() -> None:
    noon = [datetime(2012, 7, 1, 16, tzinfo=UTC)]
    seconds = int(noon[0].timestamp())
    assert table(t=["1.7.2012 12:00"]).times("t", timezone=NEW_YORK, pattern="%d.%m.%Y %H:%M").to_list() == noon
    assert table(t=["1.7.2012 18+0200"]).times("t", timezone=NEW_YORK, pattern="%d.%m.%Y %H%z").to_list() == noon
    assert table(t=[str(seconds)]).times("t", timezone=NEW_YORK, unit="seconds").to_list() == noon
    assert table(t=[seconds * 1000]).times("t", timezone=NEW_YORK, unit="milliseconds").to_list() == noon
    assert table(t=[datetime(2012, 7, 1, 12)]).times("t", timezone=NEW_YORK).to_list() == noon
    assert table(t=noon).times("t", timezone=NEW_YORK).to_list() == noon
    assert table(t=[date(2012, 7, 1)]).times("t", timezone="UTC").to_list() == [datetime(2012, 7, 1, tzinfo=UTC)]


def test_wrong_unit_is_noticed() -> None:
    with pytest.raises(DataError, match=r"column 't', data row 1: 1700000000000 is no time in seconds"):
        table(t=[1_700_000_000_000]).times("t", timezone="UTC", unit="seconds")


def test_numbers() -> None:
    assert table(n=["1", " 2.5", "true", "False", "", None]).numbers("n").to_list() == [1, 2.5, 1, 0, None, None]
    for bad in ("nan", "inf", "1,5"):
        with pytest.raises(DataError, match=f"column 'n', data row 2: '{bad}'"):
            table(n=["1", bad]).numbers("n")
    with pytest.raises(DataError, match="holds Date"):
        table(n=[date(2012, 7, 1)]).numbers("n")


def test_ids_are_one_text() -> None:
    assert table(i=[1.0, 2.0]).text("i").to_list() == ["1", "2"]
    assert table(i=[1, 2]).text("i").to_list() == ["1", "2"]
    with pytest.raises(DataError, match="plain values"):
        table(i=[[1], [2]]).text("i")
