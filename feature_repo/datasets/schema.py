"""The canonical schema: what every loader must produce, checked row by row before anything is written.

Four Parquet files and one JSON file make a dataset: `impressions`, `users`, `pois`, `scenarios`, and `schema.json`,
which names the columns that differ between datasets. Simulated worlds add what only they can know and what is never a
feature: `oracle` (true probabilities) and `favourites` (the kind of place that each user likes best). A log that is cut
user by user adds `borders`. All times are UTC with microseconds; coordinates are WGS84 degrees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.files import replacing

TIME = pa.timestamp("us", tz="UTC")
PARTS = ("history", "train", "valid", "test")


class DataError(ValueError):
    """A source table breaks the schema. The message names table, column, row and value, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """One field of a request's scene context that the client sends, such as `weather`."""

    name: str
    dtype: Literal["string", "float"] = "string"
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Borders between history | train | valid | test: each part starts at its border (inclusive), UTC.

    In a log with a table `borders`, users have a valid and a test border of their own, and these are its end.
    """

    train: datetime
    valid: datetime
    test: datetime
    end: datetime

    @property
    def by_user(self) -> bool:
        """Whether each user has borders of their own."""
        return self.valid == self.end

    def bounds(self, part: str) -> tuple[datetime | None, datetime]:
        """Start (None: the beginning of the log) and exclusive end of one of `PARTS`."""
        borders = [None, self.train, self.valid, self.test, self.end]
        at = PARTS.index(part)
        end = borders[at + 1]
        assert end is not None
        return borders[at], end


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What one dataset has beyond the columns that all datasets share.

    Attributes:
        world: of a simulated data set, which of its worlds this is: `u7` of another one is somebody else.
    """

    dataset: str
    timezone: str
    split: Split
    user_attributes: tuple[str, ...] = ()
    poi_attributes: tuple[str, ...] = ()
    request_fields: tuple[RequestField, ...] = ()
    # Request fields that are scene features as they stand (a mapping file declares them); others feed scenes.py.
    scene_fields: tuple[str, ...] = ()
    # Behaviour statistics that are kept, of `columns.STATISTICS`, and how many days they look back: a log of places to
    # which people return for months remembers longer than a feed.
    statistics: tuple[str, ...] = columns.USUAL_STATISTICS
    window_days: tuple[int, ...] = columns.WINDOW_DAYS
    like_minded: bool = False  # whether what like-minded users go to is kept too
    shown_in: bool = False  # whether POIs say which scenarios may show them
    near_km: float = 1.0  # distances well below this one are alike: rankers read log(1 + distance / near_km)
    notes: str = ""
    world: str = ""

    def __post_init__(self) -> None:
        ZoneInfo(self.timezone)
        names = [*self.user_attributes, *self.poi_attributes, *(f.name for f in self.request_fields)]
        folded = [name.casefold() for name in names]  # DuckDB takes `Name` and `name` for one column
        repeated = sorted({n for n, same in zip(names, folded, strict=True) if folded.count(same) > 1})
        if repeated:
            raise DataError(f"schema of {self.dataset}: column names used twice: {repeated}; rename one of each pair")
        reserved = sorted(n for n, same in zip(names, folded, strict=True) if same in columns.RESERVED)
        if reserved:
            raise DataError(
                f"schema of {self.dataset}: {reserved} are names of the project's own columns; rename yours"
            )
        unknown = set(self.scene_fields) - {f.name for f in self.request_fields}
        if unknown:
            raise DataError(f"schema of {self.dataset}: scene_fields {sorted(unknown)} are not request fields")
        self._check_statistics()
        s = self.split
        if not s.train <= s.valid <= s.test <= s.end:
            raise DataError(f"schema of {self.dataset}: the split must be in time order, got {s}")

    def _check_statistics(self) -> None:
        if not self.near_km > 0:
            raise DataError(f"schema of {self.dataset}: near_km must be positive, got {self.near_km}")
        if unknown := sorted(set(self.statistics) - columns.STATISTICS.keys()):
            raise DataError(
                f"schema of {self.dataset}: no statistics {unknown}; there are {', '.join(columns.STATISTICS)}"
            )
        if missing := sorted(set(columns.USUAL_STATISTICS) - set(self.statistics)):
            raise DataError(f"schema of {self.dataset}: statistics {missing} are missing; every dataset keeps those")
        days = self.window_days
        if not days or min(days) < 1 or list(days) != sorted(set(days)):
            raise DataError(f"schema of {self.dataset}: window_days must be whole days >= 1 that rise, got {days}")

    @property
    def identity(self) -> str:
        """Two data sets of the same one mean the same users and POIs by the same ids; one may have the longer log."""
        return f"{self.dataset}/{self.world}" if self.world else self.dataset

    def to_json(self) -> str:
        """`shown_in` stands there only where it is used: other data sets, and bundles of them, keep their bytes."""
        plain = asdict(self)
        if not self.shown_in:
            del plain["shown_in"]
        return json.dumps(plain, indent=1, default=datetime.isoformat)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: Path) -> Schema:
        """Raises DataError where there is none."""
        if not path.is_file():
            raise DataError(
                f"{path.parent.parent} holds no source tables: run `scenerank data city` first, or point "
                "SCENERANK_WORKSPACE (`--workspace`) at a workspace that has them"
            )
        return Schema.from_json(path.read_text())

    @staticmethod
    def from_json(text: str) -> Schema:
        raw = json.loads(text)
        return Schema(
            dataset=raw["dataset"],
            timezone=raw["timezone"],
            split=Split(**{name: datetime.fromisoformat(at) for name, at in raw["split"].items()}),
            user_attributes=tuple(raw["user_attributes"]),
            poi_attributes=tuple(raw["poi_attributes"]),
            request_fields=tuple(RequestField(**f) for f in raw["request_fields"]),
            scene_fields=tuple(raw["scene_fields"]),
            # Absent where an older version wrote it, which kept just these.
            statistics=tuple(raw.get("statistics", columns.USUAL_STATISTICS)),
            window_days=tuple(raw.get("window_days", columns.WINDOW_DAYS)),
            like_minded=raw.get("like_minded", False),
            shown_in=raw.get("shown_in", False),
            near_km=raw.get("near_km", 1.0),
            notes=raw["notes"],
            world=raw.get("world", ""),
        )

    def tables(self) -> dict[str, pa.Schema]:
        """The Arrow schema of each source table; nullable is meaningful."""
        arrow = {"string": pa.string(), "float": pa.float64()}
        clock = [_required(columns.EVENT_TIMESTAMP, TIME), _required(columns.CREATED_TIMESTAMP, TIME)]
        return {
            "impressions": pa.schema(
                [
                    _required(columns.ROW_ID, pa.int64()),
                    _required(columns.REQUEST_ID, pa.string()),
                    _required(columns.EVENT_TIMESTAMP, TIME),
                    _required(columns.OUTCOME_TIMESTAMP, TIME),
                    _required(columns.USER_ID, pa.string()),
                    _required(columns.POI_ID, pa.string()),
                    _required(columns.SCENARIO_ID, pa.string()),
                    _required(columns.CLICK, pa.int8()),
                    _required(columns.ORDER, pa.int8()),
                    pa.field(columns.POSITION, pa.int32()),
                    pa.field(columns.PROPENSITY, pa.float64()),
                    pa.field(columns.LATITUDE, pa.float64()),
                    pa.field(columns.LONGITUDE, pa.float64()),
                    *(pa.field(f.name, arrow[f.dtype]) for f in self.request_fields),
                ]
            ),
            "users": pa.schema(
                [
                    _required(columns.USER_ID, pa.string()),
                    *clock,
                    _required(columns.TEXT, pa.string()),
                    *(pa.field(name, pa.string()) for name in self.user_attributes),
                ]
            ),
            "pois": pa.schema(
                [
                    _required(columns.POI_ID, pa.string()),
                    *clock,
                    _required(columns.NAME, pa.string()),
                    _required(columns.TEXT, pa.string()),
                    _required(columns.CATEGORY, pa.string()),
                    pa.field(columns.SPECIALTY, pa.string()),
                    pa.field(columns.OPEN_HOURS, pa.string()),  # 42 hex digits: feature_repo.hours
                    *([pa.field(columns.SHOWN_IN, pa.list_(pa.string()))] if self.shown_in else []),
                    pa.field(columns.POI_LATITUDE, pa.float64()),
                    pa.field(columns.POI_LONGITUDE, pa.float64()),
                    *(pa.field(name, pa.string()) for name in self.poi_attributes),
                ]
            ),
            "scenarios": pa.schema(
                [
                    _required(columns.SCENARIO_ID, pa.string()),
                    *clock,
                    _required(columns.NAME, pa.string()),
                    _required(columns.TEXT, pa.string()),
                ]
            ),
        }


ORACLE = pa.schema(
    [
        pa.field(columns.ROW_ID, pa.int64(), nullable=False),
        pa.field("p_click", pa.float64(), nullable=False),
        pa.field("p_order", pa.float64(), nullable=False),  # unconditional: p(click and order)
    ]
)

FAVOURITES = pa.schema(
    [
        pa.field(columns.USER_ID, pa.string(), nullable=False),
        pa.field(columns.CATEGORY, pa.string(), nullable=False),
    ]
)
# Of each user, when the valid and the test part begin, where a log is cut user by user (`splits.by_user`).
BORDERS = "borders"
USER_BORDERS = pa.schema(
    [
        pa.field(columns.USER_ID, pa.string(), nullable=False),
        pa.field("valid", TIME, nullable=False),
        pa.field("test", TIME, nullable=False),
    ]
)
OPTIONAL = {"oracle": ORACLE, "favourites": FAVOURITES, BORDERS: USER_BORDERS}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A schema with its tables, not yet on disk."""

    schema: Schema
    tables: Mapping[str, pa.Table] = field(repr=False)

    def write(self, folder: Path, first: Callable[[], None] = lambda: None) -> None:
        """Validate everything, then put all files in place at once; a failure leaves `folder` as it was.

        Args:
            first: is called when all is valid and nothing is in place yet.

        Raises DataError naming table, column, row and value.
        """
        needed = {*self.schema.tables(), *([BORDERS] if self.schema.split.by_user else [])}
        missing = sorted(needed - self.tables.keys())
        if missing:
            raise DataError(f"{self.schema.dataset}: tables {missing} are missing; a dataset needs all of them")
        if BORDERS in self.tables and not self.schema.split.by_user:
            raise DataError(f"{self.schema.dataset}: a log with borders of each user is split at its end by time")
        checked = {name: conform(name, table, self.schema) for name, table in self.tables.items()}
        check_references(checked)
        first()
        with replacing(folder) as staging:
            for name, table in checked.items():
                pq.write_table(table, staging / f"{name}.parquet", compression="zstd")
            self.schema.save(staging / "schema.json")


def conform(name: str, table: pa.Table, schema: Schema) -> pa.Table:
    """Cast one table to its canonical schema and check every rule that a single table can break.

    Raises DataError for missing or surplus columns, nulls, uncastable values, duplicate keys, orders without a click,
    outcomes before their impression, coordinates off the globe and times after the end of the split.
    """
    wanted = OPTIONAL.get(name) or schema.tables().get(name)
    if wanted is None:
        raise DataError(f"{name}: no such table; a dataset has {sorted(schema.tables())} and optionally {[*OPTIONAL]}")
    missing = [c for c in wanted.names if c not in table.column_names]
    surplus = [c for c in table.column_names if c not in wanted.names]
    if missing or surplus:
        raise DataError(f"{name}: missing columns {missing}, unknown columns {surplus}")
    arrays = []
    for spec in wanted:
        try:
            arrays.append(table.column(spec.name).cast(spec.type))
        except pa.ArrowException as error:  # also what Arrow has no cast for
            raise DataError(f"{name}.{spec.name}: cannot be read as {spec.type}: {error}") from error
        if not spec.nullable:
            _refuse(name, spec.name, arrays[-1], pc.is_null(arrays[-1]), "is empty; every row needs a value")
    checked = pa.Table.from_arrays(arrays, schema=wanted)
    _check_rules(name, checked, schema)
    return checked


def check_references(tables: Mapping[str, pa.Table]) -> None:
    """Every user, POI and scenario of an impression, and scenario of a POI, must be in its table. Raises DataError."""
    impressions = tables["impressions"]
    named = [("users", columns.USER_ID), ("pois", columns.POI_ID), ("scenarios", columns.SCENARIO_ID)]
    for table, key in (*named, *([(BORDERS, columns.USER_ID)] if BORDERS in tables else [])):
        known = pc.is_in(impressions[key], value_set=tables[table][key].combine_chunks())
        _refuse("impressions", key, impressions[key], pc.invert(known), f"is not in {table}; add it there")
    if columns.SHOWN_IN in tables["pois"].column_names:
        shown_in = tables["pois"][columns.SHOWN_IN].combine_chunks()
        ids, rows = shown_in.flatten(), shown_in.value_parent_indices()
        known = pc.is_in(ids, value_set=tables["scenarios"][columns.SCENARIO_ID].combine_chunks())
        _refuse("pois", columns.SHOWN_IN, ids, pc.invert(known), "is not in scenarios; add it there", rows)


def _check_rules(name: str, table: pa.Table, schema: Schema) -> None:
    key = {"impressions": columns.ROW_ID, "users": columns.USER_ID, "pois": columns.POI_ID}.get(name)
    key = key or {"scenarios": columns.SCENARIO_ID, "oracle": columns.ROW_ID}.get(name, columns.USER_ID)
    _check_unique(name, table, key)
    for latitude, longitude in (
        (columns.LATITUDE, columns.LONGITUDE),
        (columns.POI_LATITUDE, columns.POI_LONGITUDE),
    ):
        if latitude in table.column_names:
            _check_range(name, table, latitude, -90.0, 90.0)
            _check_range(name, table, longitude, -180.0, 180.0)
    if name == BORDERS:
        late = pc.greater(table["valid"], table["test"])
        _refuse(name, "valid", table["valid"], late, "lies after the test border of the same user")
    if name != "impressions":
        return
    for label in columns.LABELS:
        _check_range(name, table, label, 0, 1)
    _check_range(name, table, columns.PROPENSITY, 0.0, 1.0)
    clicks, orders = table[columns.CLICK], table[columns.ORDER]
    _refuse(name, columns.ORDER, orders, pc.greater(orders, clicks), "is an order without a click; CTCVR = CTR x CVR")
    times, outcomes = table[columns.EVENT_TIMESTAMP], table[columns.OUTCOME_TIMESTAMP]
    _refuse(name, columns.OUTCOME_TIMESTAMP, outcomes, pc.less(outcomes, times), "lies before its impression")
    end = pa.scalar(schema.split.end, TIME)
    _refuse(name, columns.EVENT_TIMESTAMP, times, pc.greater_equal(times, end), f"is not before the end {end}")


def _check_unique(name: str, table: pa.Table, key: str) -> None:
    values = table[key]
    if pc.count_distinct(values).as_py() == len(values):
        return
    counts = values.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    _refuse(name, key, values, pc.is_in(values, value_set=repeated), "stands twice; keys are unique")


def _check_range(name: str, table: pa.Table, column: str, low: float, high: float) -> None:
    values = table[column]
    outside = pc.or_(pc.less(values, low), pc.greater(values, high))
    if pa.types.is_floating(values.type):
        outside = pc.or_(outside, pc.is_nan(values))
    _refuse(name, column, values, pc.fill_null(outside, False), f"is outside {low} .. {high}")


def _refuse(
    name: str, column: str, values: pa.ChunkedArray, bad: pa.ChunkedArray, why: str, rows: pa.Array | None = None
) -> None:
    """Raise for the first bad value, with its row (0-based) and how many such rows there are.

    Args:
        rows: of the values; None: each has a row of its own.
    """
    if pc.any(bad).as_py():
        at = pc.index(bad, True).as_py()
        row, count = (at, pc.sum(bad)) if rows is None else (rows[at], pc.count_distinct(rows.filter(bad)))
        raise DataError(f"{name}.{column}, row {row}: {values[at].as_py()!r} {why} ({count} such rows)")


def _required(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)
