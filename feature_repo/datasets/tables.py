"""One raw table from one or several files, whose rows follow each other: only what is used of them is read.

A row keeps its place: what is wrong with it is told by its own file, column and row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from feature_repo.datasets.mapping_file import Key, SourceFile
from feature_repo.datasets.raw import Piece, RawTable, nearest
from feature_repo.datasets.scan import as_text, scan
from feature_repo.datasets.schema import DataError

ROW = "its row in its file"


@dataclass(frozen=True, kw_only=True)
class Only:
    """Rows whose key is one of these (or empty: such a row is to be refused, not lost)."""

    key: Key
    values: pl.Series


def read(
    folder: Path, files: Sequence[SourceFile], wanted: Collection[str] | None = None, only: Only | None = None
) -> RawTable:
    """The rows of these files as one table; a column that a file lacks is empty in its rows.

    Args:
        wanted: columns to hold, those that there are; None means all.
    Raises:
        DataError: no such file, no table, or a column to rename that is not there.
    """
    frames, pieces = [], []
    known: dict[str, None] = {}
    for number, source in enumerate(files):
        file = folder / source.file
        try:
            rows = _rows(file, source, wanted)
            names = [name for name in rows.collect_schema().names() if name != ROW]
            known |= dict.fromkeys(names)
            if only is not None:
                joined = _joined(rows, only.key)
                rows = rows.filter(joined.is_in(only.values.implode()) | joined.is_null())
            held = [name for name in names if wanted is None or name in wanted]
            frames.append(rows.select(*held, ROW, pl.lit(number, pl.UInt32).alias("piece")).collect(engine="streaming"))
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable table: {error}") from error
        pieces.append(Piece(file=file, names={new: old for old, new in source.rename.items()}))
    frame = pl.concat(_alike(frames), how="diagonal_relaxed", rechunk=False)
    return RawTable(
        file=pieces[0].file,
        frame=frame.drop(ROW, "piece"),
        known=tuple(known),
        pieces=tuple(pieces),
        origin=frame.select("piece", ROW),
    )


def _alike(frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """A column that files hold as different types becomes text in each: 1 of the one and 1.0 of the other are one id.

    Times and lists are left as they are, and so is a column that is empty in a file.
    """
    types: dict[str, set[pl.DataType]] = {}
    for frame in frames:
        for name, dtype in frame.schema.items():
            if dtype != pl.Null:
                types.setdefault(name, set()).add(dtype)
    mixed = {
        name
        for name, found in types.items()
        if len(found) > 1 and not all(t.is_temporal() for t in found) and not any(t.is_nested() for t in found)
    }
    return [f.with_columns(as_text(name, dtype) for name, dtype in f.schema.items() if name in mixed) for f in frames]


def drawn(folder: Path, files: Sequence[SourceFile], key: Key, count: int, seed: int) -> Only:
    """So many of the keys of a table, drawn at random; all of them where there are not so many."""
    found = []
    for source in files:
        rows = _rows(folder / source.file, source, key)
        found.append(rows.select(_joined(rows, key).alias("key")).unique().collect(engine="streaming"))
    every = pl.concat(found)["key"].drop_nulls().unique().sort()
    return Only(key=key, values=every.sample(min(count, len(every)), seed=seed))


def _rows(file: Path, source: SourceFile, wanted: Collection[str] | None) -> pl.LazyFrame:
    """The rows of one file under the names of the table, each with its number in the file, from 0."""
    hint = None if wanted is None else [*wanted, *source.rename]
    rows = scan(file, hint)
    names = rows.collect_schema().names()
    for name in source.rename:
        if name not in names:
            raise DataError(f"{file}: no column {name!r} to rename{nearest(name, names)}")
    if taken := sorted({*source.rename.values(), *source.add}.intersection(set(names) - set(source.rename))):
        raise DataError(f"{file}: has columns {taken} already; rename or add under other names")
    rows = rows.with_row_index(ROW).rename(dict(source.rename))
    rows = rows.with_columns(pl.lit(value).alias(name) for name, value in source.add.items())
    return rows.gather_every(source.every, source.offset) if source.every > 1 else rows


def _joined(rows: pl.LazyFrame, key: Key) -> pl.Expr:
    schema = rows.collect_schema()
    for name in key:
        if name not in schema:
            raise DataError(f"no column {name!r}{nearest(name, [n for n in schema if n != ROW])}")
    return pl.concat_str([as_text(name, schema[name]) for name in key], separator="|")
