"""A raw table as its file has it: values are read strictly, and a bad one is named by file, column, row and value.

Rows are counted as data rows from 1 (a CSV's header is not counted).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import polars as pl

from feature_repo.datasets.frames import MICROSECONDS
from feature_repo.datasets.scan import as_text, scan
from feature_repo.datasets.schema import DataError

WITH_OFFSET = r"[T ].*(?:Z|z|[+-]\d\d(?::?\d\d)?)$"  # an ISO 8601 time that names its own offset from UTC
UNITS = {"seconds": 1e6, "milliseconds": 1e3, "microseconds": 1.0}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file whose rows stand in a table; `names`: what those of its columns are called in it that have other names."""

    file: Path
    names: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """One file, or several one after the other; columns of text files are text, others have the types of the file.

    Attributes:
        known: the columns of the file, where the frame holds some of them only.
        pieces: the files, where there are several, or not all of the rows. origin: of each row the number of its piece
            and its row in it, from 0.
    """

    file: Path
    frame: pl.DataFrame = field(repr=False)
    known: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    origin: pl.DataFrame | None = field(default=None, repr=False)

    @staticmethod
    def read(file: Path) -> RawTable:
        """Read a file that `scan` knows. Raises DataError for no file, no table, a ragged table."""
        try:
            return RawTable(file=file, frame=scan(file).collect())
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
                raise DataError(f"{self.file}: no column {name!r}{self.nearest(name)}")

    def nearest(self, name: str) -> str:
        """The end of an error message about a column that is not there."""
        return nearest(name, self.known or self.frame.columns)

    def where(self, mask: pl.Series) -> RawTable:
        """The rows where `mask` holds."""
        return self.take(mask.arg_true())

    def take(self, rows: pl.Series) -> RawTable:
        """The rows of these numbers (from 0), in their order; what is wrong with one is still told by its own place."""
        if self.origin is None:
            origin = pl.DataFrame({"piece": pl.repeat(0, len(rows), dtype=pl.UInt32, eager=True), "row": rows})
            return replace(self, frame=self.frame[rows], pieces=(Piece(file=self.file, names={}),), origin=origin)
        return replace(self, frame=self.frame[rows], origin=self.origin[rows])

    def refuse(self, column: str, bad: pl.Series, why: str) -> None:
        """Raises DataError for the first row where `bad` holds."""
        rows = bad.fill_null(False).arg_true()
        if len(rows):
            value = self.frame[column][rows[:1]].to_list()[0]
            file, name, row = self._place(column, rows[0])
            raise DataError(f"{file}, column {name!r}, data row {row + 1}: {value!r} {why} ({len(rows)} such rows)")

    def _place(self, column: str, row: int) -> tuple[Path, str, int]:
        if self.origin is None or row >= len(self.origin):  # rows of entities that the table does not tell of
            return self.file, column, row
        number, at = self.origin.row(row)
        piece = self.pieces[number]
        return piece.file, piece.names.get(column, column), at

    def text(self, column: str) -> pl.Series:
        """Values as text; whole floats lose their `.0`, so that an id is the same text in every file."""
        self.require([column])
        dtype = self.frame.schema[column]
        if dtype.is_nested() and dtype not in (pl.List(pl.String), pl.List(pl.List(pl.String))):
            raise DataError(f"{self.file}, column {column!r}: holds {dtype}; give a column of plain values")
        return self.frame.select(as_text(column, dtype)).to_series()

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
        texts = self.text(column)
        different = texts.unique()  # one moment is the time of many rows
        parsed = _utc_series(column, parse_times(different.to_pandas(), timezone, pattern))
        times = texts.replace_strict(different, parsed, return_dtype=MICROSECONDS)
        expected = f"the pattern {pattern}" if pattern else "ISO 8601, as in 2024-05-31 18:30:00"
        self.refuse(column, times.is_null(), f"is not a time; expected {expected}")
        return times


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
