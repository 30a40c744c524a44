"""The point-in-time join itself: which version of an entity is the newest that a row can see, by Polars' ASOF merge.

Polars is given keys and times alone and says positions; values are then taken by position, so they keep their types.
A table of versions that is larger than a setting is joined part by part, entities divided by a hash of their keys; the
parts know nothing of each other, so that they may be joined on other machines.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from feature_repo.stores.layout import NEVER
from feature_repo.stores.packed import MICROSECOND, micros_of

NS_US = np.iinfo(np.int64).max // 1000  # moments from the epoch, in microseconds, that nanoseconds reach
ROW, MOMENT = "__row", "__moment"  # of the spine: position, microseconds
AT, EVENT, CREATED, KNOWN = "__at", "__event", "__created", "__known"  # of versions: position, microseconds


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What one view contributes to a join.

    Attributes:
        relation: the path of Parquet files, or a table.
        keys: column of the view -> column of the entity rows.
        features: name in the answer -> column of the source.
        time: of events; of rows of one time the one created last counts, of those the last one of the source.
        created: only where creation time limits what may be seen, or settles ties.
        known_only: whether a value counts from its creation only.
    """

    name: str
    relation: str | pa.Table
    keys: Mapping[str, str]
    features: Mapping[str, str]
    time: str
    created: str | None
    ttl: timedelta | None
    known_only: bool

    @property
    def columns(self) -> list[str]:
        """Of the source."""
        times = [self.time, *([self.created] if self.created else [])]
        return list(dict.fromkeys([*self.keys, *times, *self.features.values()]))


@dataclass(frozen=True)
class Part:
    """What one part of the entities gives: `rows` of the spine (int64, n), and of each feature their values (n)."""

    rows: np.ndarray
    values: pa.Table


def join(spine: pa.Table, moments_us: np.ndarray, lookup: Lookup, part_rows: int) -> dict[str, pa.ChunkedArray]:
    """The values of one view for every spine row, in the spine's order; null where nothing may be seen.

    Args:
        spine: n rows with the entity columns of the lookup.
        moments_us: int64 (n,), microseconds UTC; `NEVER` for none, at which nothing may be seen.
        part_rows: versions in memory at a time, about.
    """
    parts = parts_of(lookup, part_rows)
    return together([join_part(spine, moments_us, lookup, part, parts) for part in range(parts)])


def parts_of(lookup: Lookup, part_rows: int) -> int:
    """Into how many parts a view's entities are divided."""
    return max(1, -(-_source(lookup).count_rows() // part_rows)) if lookup.keys else 1


def join_part(spine: pa.Table, moments_us: np.ndarray, lookup: Lookup, part: int, parts: int) -> Part:
    """The same for the entities of one part; it needs nothing of the others."""
    source = _source(lookup)
    asked = _asked(spine, moments_us, lookup, source.schema)
    if parts > 1:
        asked = asked.filter(_of_part(lookup.keys, part, parts))
    reach = _reach(lookup, source.schema.field(lookup.time).type, moments_us)
    versions = _versions(source, lookup, reach, part, parts)
    rows, positions = _newest(asked, versions, lookup)
    return Part(rows, pa.table({name: versions[column].take(positions) for name, column in lookup.features.items()}))


def together(parts: Sequence[Part]) -> dict[str, pa.ChunkedArray]:
    """The values of all parts in the order of the spine."""
    values = pa.concat_tables(part.values for part in parts)
    if len(parts) > 1:
        values = values.take(pa.array(np.argsort(np.concatenate([part.rows for part in parts]))))
    return {name: values[name] for name in values.column_names}


def _source(lookup: Lookup) -> pds.Dataset:
    return source_of(lookup.name, lookup.relation, lookup.columns)


def source_of(view: str, relation: str | pa.Table, columns: Sequence[str]) -> pds.Dataset:
    """The source of a view, which has all of these columns; of several files, in the order of their names, some may
    lack some. Raises FileNotFoundError or ValueError where it has not."""
    if isinstance(relation, pa.Table):
        source, place = pds.dataset(relation), "its table"
    elif not glob.has_magic(relation) and os.path.exists(relation):
        source, place = pds.dataset(relation), relation
    else:
        source, place = _of_files(view, relation, columns), relation
    absent = [name for name in columns if name not in source.schema.names]
    if absent:
        raise ValueError(
            f"the source of view {view!r} ({place}) has no columns {absent}: write them, or correct the view's "
            f"source, its schema or its field_mapping; it has {', '.join(source.schema.names)}"
        )
    return source


def _of_files(view: str, pattern: str, columns: Sequence[str]) -> pds.Dataset:
    """The columns of a view of all files, null where a file has not got one."""
    files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise FileNotFoundError(
            f"{pattern} is not there: write the source of view {view!r} first, or correct its path "
            "(a SceneRank workspace gets its sources from `scenerank data`, `embed` and `knowledge`)"
        )
    schemas = [pq.read_schema(file) for file in files]
    try:
        wanted = [pa.schema([field for field in schema if field.name in columns]) for schema in schemas]
        return pds.dataset(files, schema=pa.unify_schemas(wanted, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"the files of {pattern}, the source of view {view!r}, do not agree: {error}; write the "
            "column with one type"
        ) from error


def _asked(spine: pa.Table, moments_us: np.ndarray, lookup: Lookup, schema: pa.Schema) -> pl.DataFrame:
    """Keys under the view's names and of its types, moment and position of every spine row."""
    keys = {key: _key(spine[entity], entity, schema.field(key), lookup) for key, entity in lookup.keys.items()}
    return pl.DataFrame({**keys, MOMENT: moments_us, ROW: np.arange(len(spine))})


def _key(column: pa.ChunkedArray, entity: str, field: pa.Field, lookup: Lookup) -> pl.Series:
    """Entities as the view's keys. One that the type of the keys cannot hold exactly has no versions."""
    given, held = _plain(column), _plain(pa.chunked_array([], field.type)).dtype
    if given.dtype == held:
        return given
    if not _comparable(given.dtype, held):
        raise ValueError(
            f"column {entity!r} of the entity rows is {column.type}, key {field.name!r} of view {lookup.name!r} is "
            f"{field.type}, and no such value equals another: cast the column to the type of the key"
        )
    if pl.Null in (given.dtype, held):
        return pl.Series([None] * len(given), dtype=held)
    cast = given.cast(held, strict=False)
    return pl.select(pl.when(cast.cast(given.dtype, strict=False) == given).then(cast)).to_series()


def _comparable(given: pl.DataType, held: pl.DataType) -> bool:
    """Whether values of two types can be the same. A whole number is the same as its digits."""
    if pl.Null in (given, held):
        return True
    if pl.String in (given, held):
        return all(kind == pl.String or kind == pl.Binary or kind.is_integer() for kind in (given, held))
    return (given.is_numeric() and held.is_numeric()) or (given.is_temporal() and held.is_temporal())


def _plain(column: pa.ChunkedArray) -> pl.Series:
    """As Polars compares it."""
    decoded = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return pl.Series(decoded)


def _reach(lookup: Lookup, dtype: pa.DataType, moments_us: np.ndarray) -> pds.Expression | None:
    """Which versions any spine row can see at all, where Parquet's statistics can tell."""
    real_us = moments_us[moments_us != NEVER]
    if not pa.types.is_timestamp(dtype) or not len(real_us):
        return None
    first_us, last_us = int(real_us.min()), int(real_us.max())

    def moment(us: int) -> pa.Scalar:
        held = min(max(us, -NS_US), NS_US) if dtype.unit == "ns" else us
        return pa.scalar(held, pa.timestamp("us", dtype.tz)).cast(dtype, safe=False)

    reach = pds.field(lookup.time) <= moment(last_us)
    if lookup.ttl is not None:
        reach &= pds.field(lookup.time) >= moment(first_us - lookup.ttl // MICROSECOND)
    return reach


def _versions(source: pds.Dataset, lookup: Lookup, reach: pds.Expression | None, part: int, parts: int) -> pa.Table:
    """Keys, times and features of the versions in reach, of one part of the entities."""
    if parts == 1:
        return source.to_table(columns=lookup.columns, filter=reach).combine_chunks()
    return pa.Table.from_batches(list(_batches(source, lookup, reach, part, parts))).combine_chunks()


def _batches(
    source: pds.Dataset, lookup: Lookup, reach: pds.Expression | None, part: int, parts: int
) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pylist([], schema=pa.schema([source.schema.field(name) for name in lookup.columns]))
    for batch in source.to_batches(columns=lookup.columns, filter=reach):
        keys = pl.DataFrame({key: _plain(pa.chunked_array([batch[key]])) for key in lookup.keys})
        yield batch.filter(keys.select(_of_part(lookup.keys, part, parts)).to_series().to_arrow())


def _of_part(keys: Mapping[str, str], part: int, parts: int) -> pl.Expr:
    return pl.struct(*keys).hash() % parts == part


def _newest(asked: pl.DataFrame, versions: pa.Table, lookup: Lookup) -> tuple[np.ndarray, pa.Array]:
    """Positions of spine rows, and of the version that each of them sees (null: none)."""
    keys = list(lookup.keys)
    known = _known(versions, lookup)
    merged = asked.sort(MOMENT).join_asof(
        known, left_on=MOMENT, right_on=KNOWN, by=keys or None, strategy="backward", check_sortedness=False
    )
    seen = pl.col(AT)
    if lookup.ttl is not None:
        seen = pl.when(pl.col(EVENT) + lookup.ttl // MICROSECOND >= pl.col(MOMENT)).then(seen)
    found = merged.select(ROW, seen.alias(AT)).sort(ROW)
    return found[ROW].to_numpy(), found[AT].cast(pl.Int64).to_arrow()


def _known(versions: pa.Table, lookup: Lookup) -> pl.DataFrame:
    """A row a version that is the newest of its entity from some moment on: keys, that moment, event time, position.

    In the order of that moment; of several at one moment the last one counts.
    """
    event = micros_of(versions[lookup.time])
    keys = {key: _plain(versions[key]) for key in lookup.keys}
    frame = pl.DataFrame({**keys, EVENT: event, AT: np.arange(len(versions), dtype=np.int64)})
    created = event
    if lookup.created is not None:
        created = micros_of(versions[lookup.created])  # null is the earliest of all
    if (created == event).all():
        ordered = frame if (event[1:] >= event[:-1]).all() else frame.sort(EVENT, maintain_order=True)
    else:
        ordered = frame.with_columns(pl.Series(CREATED, created)).sort(EVENT, CREATED, maintain_order=True)
    if lookup.known_only and (created > event).any():
        ordered = _without_superseded(ordered, list(keys))
    else:
        ordered = ordered.with_columns(pl.col(EVENT).alias(KNOWN))
    usable = pl.all_horizontal(pl.col(EVENT) != NEVER, *(pl.col(key).is_not_null() for key in keys))
    return ordered.filter(usable).select(*keys, KNOWN, EVENT, AT)


def _without_superseded(ordered: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """A value counts from the later of its event and creation time. One that arrives when a newer one was there
    already is never the newest.

    Args:
        ordered: by event, then creation time.
    """
    age = "__age"
    by_arrival = (
        ordered.with_row_index(age).with_columns(pl.max_horizontal(EVENT, CREATED).alias(KNOWN)).sort(KNOWN, age)
    )
    newest_so_far = pl.col(age).cum_max()
    return by_arrival.filter(pl.col(age) == (newest_so_far.over(keys) if keys else newest_so_far))
