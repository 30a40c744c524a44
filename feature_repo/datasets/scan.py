"""Raw files as lazy frames, so that only wanted columns and rows are held: CSV, Parquet, and a JSON object a line.

Some published files have a Python literal in each line where JSON is expected (`{'asin': 'B00'}`): read as data, never
run.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from feature_repo.datasets.schema import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".user": "\t", ".item": "\t"}
JSON_LINES = (".json", ".jsonl")


def scan(file: Path, wanted: Collection[str] | None = None) -> pl.LazyFrame:
    """Rows of `.csv`, `.tsv`, `.json` and `.jsonl` (also `.gz`) or `.parquet`, in the order of the file.

    Columns of delimited text are text, an empty field is a null; others have the types of the file.

    Args:
        wanted: columns that will be used, a hint; None means all.
    Raises:
        DataError: there is no such file, or its suffix is none of these. Others of Polars where it is no table.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if suffix == ".parquet":
        return pl.scan_parquet(file)
    if suffix in JSON_LINES:
        return _json_lines(file, wanted)
    if suffix in SEPARATORS:
        return pl.scan_csv(file, separator=SEPARATORS[suffix], infer_schema=False)
    raise DataError(f"{file}: cannot read {suffix or 'a file without suffix'}; give .csv, .tsv, .json or .parquet")


def as_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """Values as text: whole floats lose their `.0`; lists of words, and lists of these, become one line."""
    values = pl.col(column)
    if dtype == pl.List(pl.List(pl.String)):
        return values.list.eval(pl.element().list.join(", ")).list.join("; ")
    if dtype == pl.List(pl.String):
        return values.list.join(", ")
    text = values.cast(pl.String)
    return text.str.replace(r"\.0$", "") if dtype.is_float() else text


def _json_lines(file: Path, wanted: Collection[str] | None) -> pl.LazyFrame:
    held = None if wanted is None else frozenset(wanted)
    with _opened(file) as lines:
        first = lines.readline()
    try:
        json.loads(first)
    except json.JSONDecodeError:
        content = io.BytesIO("".join(f"{json.dumps(row)}\n" for row in _literals(file, held)).encode())
        return pl.read_ndjson(content, infer_schema_length=None).lazy()
    return pl.scan_ndjson(file, infer_schema_length=None)


def _literals(file: Path, held: frozenset[str] | None) -> Iterator[dict[str, object]]:
    """Its rows under all names that they have; values that are not held are None."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = ast.literal_eval(line)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise DataError(f"{file}, line {number}: {line[:60]!r} is no JSON object") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: {line[:60]!r} is no JSON object")
            yield {name: value if held is None or name in held else None for name, value in row.items()}


def _opened(file: Path) -> io.TextIOWrapper:
    if file.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(file), encoding="utf-8")
    return file.open(encoding="utf-8")
