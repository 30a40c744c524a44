"""From Polars frames to a `Dataset`: what a log does not have becomes null, rows are numbered in time order."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from feature_repo import columns
from feature_repo.datasets.schema import BORDERS, Dataset, Schema

MICROSECONDS = pl.Datetime("us", "UTC")


def assemble(
    schema: Schema,
    *,
    impressions: pl.DataFrame,
    users: pl.DataFrame,
    pois: pl.DataFrame,
    scenarios: pl.DataFrame,
    borders: pl.DataFrame | None = None,
) -> Dataset:
    """A dataset from frames that have at least the required columns of `schema.tables()`.

    Impressions are sorted by time, request and position and numbered from 0; nullable columns that a frame lacks are
    added as nulls; columns that the schema does not name are left out. `borders` are those of each user, if any.
    """
    order = [c for c in (columns.EVENT_TIMESTAMP, columns.REQUEST_ID, columns.POSITION) if c in impressions.columns]
    rows = impressions.sort(order, maintain_order=True).with_row_index(columns.ROW_ID)
    frames = {"impressions": rows, "users": users, "pois": pois, "scenarios": scenarios}
    tables = {}
    for name, wanted in schema.tables().items():
        frame = frames[name]
        absent = [pl.lit(None).alias(f.name) for f in wanted if f.nullable and f.name not in frame.columns]
        tables[name] = frame.with_columns(absent).select(wanted.names).to_arrow()
    if borders is not None:
        tables[BORDERS] = borders.to_arrow()
    return Dataset(schema=schema, tables=tables)


def known_since(frame: pl.DataFrame, moment: datetime | pl.Expr) -> pl.DataFrame:
    """Static facts that are available from one moment on, or each row from its own: both clocks are set to it."""
    clock = moment if isinstance(moment, pl.Expr) else pl.lit(moment, dtype=MICROSECONDS)
    return frame.with_columns(
        clock.alias(columns.EVENT_TIMESTAMP),
        clock.alias(columns.CREATED_TIMESTAMP),
    )


def day_start(moment: datetime) -> datetime:
    """The UTC midnight at or before a moment: where static tables of a log begin."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
