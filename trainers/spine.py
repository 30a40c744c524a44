"""The rows that a pull is asked for: impressions of the log, or an entity table of one's own.

An entity table is a Parquet or CSV file with user, POI, scenario and time, in the log's own column names, and whatever
else of an impression there is: what the request said about its moment, a row id, labels. What is not there is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import Schema

NEEDED = (columns.USER_ID, columns.POI_ID, columns.SCENARIO_ID, columns.EVENT_TIMESTAMP)


class SpineError(ValueError):
    """An entity table cannot be used; the message names file, column, row and value."""


def read_entities(path: Path, schema: Schema) -> pa.Table:
    """An entity table with the columns of impressions, in the order of its row ids (by default the order of its rows).

    Raises SpineError for a column that is needed and absent, a null, a row id that is there twice, a value of another
    type, and a file of another kind. What is no column of impressions is left out.
    """
    impression = schema.tables()["impressions"]
    table = _read(path, impression)
    if absent := [name for name in NEEDED if name not in table.column_names]:
        raise SpineError(f"{path} has no columns {absent}; it has {', '.join(table.column_names)}")
    if columns.ROW_ID not in table.column_names:
        table = table.append_column(columns.ROW_ID, pa.array(range(len(table)), pa.int64()))
    for field in impression:
        if field.name in table.column_names:
            at = table.column_names.index(field.name)
            table = table.set_column(at, field.name, _typed(path, table, field))
        elif field.nullable:
            table = table.append_column(field.name, pa.nulls(len(table), field.type))
    table = table.select([name for name in impression.names if name in table.column_names])
    ids, counts = np.unique(table[columns.ROW_ID].to_numpy(), return_counts=True)
    if (counts > 1).any():
        raise SpineError(f"{path}: {columns.ROW_ID} {ids[counts > 1][0]} is there more than once")
    return table.sort_by(columns.ROW_ID)


def _read(path: Path, impression: pa.Schema) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".csv":
        words = {field.name: field.type for field in impression if pa.types.is_string(field.type)}  # "007" is no 7
        options = pcsv.ConvertOptions(column_types=words, strings_can_be_null=True, null_values=[""])
        return pcsv.read_csv(path, convert_options=options)
    raise SpineError(f"{path} is neither .parquet nor .csv")


def _typed(path: Path, table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """One column of the type that impressions have. A time without a zone is UTC."""
    column = table[field.name]
    try:
        if pa.types.is_timestamp(column.type) and column.type.tz is None:
            column = column.cast(pa.timestamp(column.type.unit, "UTC"))
        typed = column.cast(field.type)
    except pa.ArrowException as error:
        raise SpineError(f"{path}: {field.name} is {column.type}, not {field.type}: {error}") from error
    if field.name in (*NEEDED, columns.ROW_ID) and typed.null_count:
        raise SpineError(f"{path}: row {pc.index(typed.is_null(), True)} has no {field.name}")
    return typed
