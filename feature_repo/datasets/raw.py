"""A raw table as its file has it: values are read strictly, and a bad one is named by file, column, row and value.

Rows are counted as data rows from 1 (a CSV's header is not counted).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import polars as pl

from feature_repo.datasets.frames import MICROSECONDS
from feature_repo.datasets.schema import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".user": "\t", ".item": "\t"}
WITH_OFFSET = r"[T ].*(?:Z|z|[+-]\d\d(?::?\d\d)?)$"  # an ISO 8601 time that names its own offset from UTC
UNITS = {"seconds": 1e6, "milliseconds": 1e3, "microseconds": 1.0}


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """One file; the columns of a CSV are text, those of a Parquet file have the types of the file."""

    file: Path
    frame: pl.DataFrame = field(repr=False)

    @staticmethod
    def read(file: Path) -> RawTable:
        """Read CSV (`.csv`, `.tsv`, also `.gz`) or Parquet. Raises DataError for no file, no table, a ragged table."""
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
        try:
            if suffix == ".parquet":
                return RawTable(file=file, frame=pl.read_parquet(file))
            if suffix not in SEPARATORS:
                raise DataError(f"{file}: cannot read {suffix or 'a file without suffix'}; give .csv, .tsv or .parquet")
            return RawTable.parse(file, file.read_bytes(), SEPARATORS[suffix])
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable table: {error}") from error

    @staticmethod
    def parse(file: Path, content: bytes, separator: str, quote: str | None = '"') -> RawTable:
        """Delimited text, every column as text; an empty field is a null."""
        frame = pl.read_csv(content, separator=separator, quote_char=quote, infer_schema=False)
        return RawTable(file=file, frame=frame)

    def require(self, names: Iterable[str]) -> None:
        """Raises DataError, with the nearest name that there is, for the first column that is missing."""
        for name in names:
            if name not in self.frame.columns:
                raise DataError(f"{self.file}: no column {name!r}{nearest(name, self.frame.columns)}")

    def refuse(self, column: str, bad: pl.Series, why: str) -> None:
        """Raises DataError for the first row where `bad` holds."""
        rows = bad.fill_null(False).arg_true()
        if len(rows):
            value = self.frame[column][rows[0]]
            raise DataError(
                f"{self.file}, column {column!r}, data row {rows[0] + 1}: {value!r} {why} ({len(rows)} such rows)"
            )

    def text(self, column: str) -> pl.Series:
        """Values as text; whole floats lose their `.0`, so that an id is the same text in every file."""
        self.require([column])
        values = self.frame[column]
        if values.dtype.is_nested():
            raise DataError(f"{self.file}, column {column!r}: holds {values.dtype}; give a column of plain values")
        if values.dtype.is_float():
            return values.cast(pl.String).str.replace(r"\.0$", "")
        return values.cast(pl.String)

    def keys(self, column: str) -> pl.Series:
        """Values as text, refusing empty ones."""
        values = self.text(column)
        self.refuse(column, values.is_null() | (values == ""), "is empty; every row needs a value")
        return values

    def unique_keys(self, column: str) -> pl.Series:
        """Keys, refusing repeated ones (the second row of a pair is named)."""
        values = self.keys(column)
        self.refuse(column, ~values.is_first_distinct(), "stands in an earlier row too; keys are unique")
        return values

    def numbers(self, column: str) -> pl.Series:
        """Finite float64 values or null; true and false are 1 and 0."""
        self.require([column])
        values = self.frame[column]
        if values.dtype == pl.String:
            words = values.str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0", "": None})
            parsed = words.cast(pl.Float64, strict=False)
            self.refuse(column, parsed.is_null() & words.is_not_null(), "is not a number")
        elif values.dtype.is_numeric() or values.dtype == pl.Boolean:
            parsed = values.cast(pl.Float64)
        else:
            raise DataError(f"{self.file}, column {column!r}: holds {values.dtype}; give a column of numbers")
        self.refuse(column, ~parsed.is_finite(), "is not a finite number")
        return parsed

    def times(
        self,
        column: str,
        *,
        timezone: str,
        unit: Literal["seconds", "milliseconds", "microseconds"] | None = None,
        pattern: str | None = None,
    ) -> pl.Series:
        """UTC times in microseconds, refusing empty and unreadable ones.

        Args:
            timezone: of times that do not name an offset. Of an hour that the clocks repeat the first one is taken;
                a time that they skip moves forward.
            unit: the column counts this since 1970 in UTC.
            pattern: a `strptime` pattern; the default is ISO 8601.
        """
        self.keys(column)
        if unit is not None:
            micros = self.numbers(column) * UNITS[unit]
            self.refuse(column, micros.abs() > 4e15, f"is no time in {unit} since 1970; check the unit")
            return micros.round().cast(pl.Int64).cast(MICROSECONDS)
        values = self.frame[column]
        if values.dtype.is_temporal():
            moments = values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None)))
            if moments.dtype != pl.Datetime("us"):
                return moments.dt.convert_time_zone("UTC")
            return _utc_series(column, localize(moments.to_pandas(), timezone))
        parsed = parse_times(self.text(column).to_pandas(), timezone, pattern)
        expected = f"the pattern {pattern}" if pattern else "ISO 8601, as in 2024-05-31 18:30:00"
        self.refuse(column, pl.Series(parsed.isna().to_numpy()), f"is not a time; expected {expected}")
        return _utc_series(column, parsed)


def parse_times(values: pd.Series[str], timezone: str, pattern: str | None) -> pd.Series[pd.Timestamp]:
    """Texts -> UTC times, NaT where a text is not a time."""
    if pattern is not None and "%z" in pattern:
        return pd.to_datetime(values, format=pattern, errors="coerce", utc=True)
    if pattern is not None:
        return localize(pd.to_datetime(values, format=pattern, errors="coerce"), timezone)
    absolute = values.str.contains(WITH_OFFSET, regex=True)
    moments = pd.to_datetime(values.where(absolute), format="ISO8601", errors="coerce", utc=True)
    local = pd.to_datetime(values.mask(absolute), format="ISO8601", errors="coerce")
    return moments.fillna(localize(local, timezone))


def localize(local: pd.Series[pd.Timestamp], timezone: str) -> pd.Series[pd.Timestamp]:
    """Local wall clock -> UTC: the first of a repeated hour, a skipped time moves forward."""
    daylight_first = np.ones(len(local), dtype=bool)
    zoned = local.dt.tz_localize(timezone, ambiguous=daylight_first, nonexistent="shift_forward")
    return zoned.dt.tz_convert("UTC")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, and what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (there is: {', '.join(names)})"


def _utc_series(name: str, times: pd.Series[pd.Timestamp]) -> pl.Series:
    return pl.Series(name, times.dt.as_unit("us")).cast(MICROSECONDS)
