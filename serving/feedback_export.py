"""Feedback -> the log that training sets are pulled from: a row a place that was shown, with what became of it.

The log is what it was, plus the answers whose outcome is known by now, however often this is done: rows of an answer
that came earlier make room for what is known of it today.

    answers of this data set that are older than the wait, places that it has
      -> click and order of each, the position that it was shown at
      -> behind the rows that were there; valid and test part move with the end of the log

The propensity of a place is the one that its caller sent back from the answer, unknown where it sent none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, Engine, select

from feature_repo import columns
from feature_repo.datasets.schema import DataError, Dataset, Schema, Split
from feature_repo.workspace import Workspace
from serving.feedback import Outcome
from serving.feedback_tables import ANSWERS, EVENTS

TABLES = ("users", "pois", "scenarios", "favourites")
REQUEST = "feedback:"  # before the answer's id, in the log's `request_id`
READ_ROWS = 50_000
HAPPENED = "happened"  # time of an event; of a place, when its outcome was known

# Of an event and its answer: name -> column, type.
_EVENT: Mapping[str, tuple[ColumnElement[Any], type[pl.DataType]]] = {
    columns.POI_ID: (EVENTS.c[columns.POI_ID], pl.String),
    "outcome": (EVENTS.c.outcome, pl.String),
    columns.POSITION: (EVENTS.c[columns.POSITION], pl.Int32),
    columns.PROPENSITY: (EVENTS.c[columns.PROPENSITY], pl.Float64),
    HAPPENED: (EVENTS.c.time_us, pl.Int64),
    "answer_id": (ANSWERS.c.answer_id, pl.String),
    "dataset": (ANSWERS.c.dataset, pl.String),
    columns.USER_ID: (ANSWERS.c[columns.USER_ID], pl.String),
    columns.SCENARIO_ID: (ANSWERS.c[columns.SCENARIO_ID], pl.String),
    "time_us": (ANSWERS.c.time_us, pl.Int64),
    columns.LATITUDE: (ANSWERS.c[columns.LATITUDE], pl.Float64),
    columns.LONGITUDE: (ANSWERS.c[columns.LONGITUDE], pl.Float64),
    "scene_inputs": (ANSWERS.c.scene_inputs, pl.String),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export.

    Attributes:
        rows, clicks, orders: of feedback, in the log now.
        waiting: answers that are too young.
        unknown: places (of answers) that were left out: the data set lacks the user, the POI or the scenario.
        foreign: answers that were left out: they were of another data set, where the same ids name others.
    """

    rows: int
    clicks: int
    orders: int
    waiting: int
    unknown: int
    foreign: int


def grown(workspace: Workspace, engine: Engine, until: datetime, wait: timedelta) -> tuple[Dataset, Exported]:
    """The data set with the feedback of answers given up to `wait` before `until`; nothing is written.

    Args:
        wait: how long after an answer its outcome counts as known: a place that was not clicked by then was refused.
    Raises:
        DataError: the log is cut user by user; there it is not known which part new rows belong to.
    """
    schema = Schema.load(workspace.schema)
    if schema.split.by_user:
        raise DataError(f"{schema.dataset} is cut user by user: new rows would all be of the test part")
    events = _events(engine)
    ours = pl.col("dataset").is_null() | (pl.col("dataset") == schema.identity)
    places, waiting = _places(events.filter(ours), _micros(until - wait), _micros(wait))
    foreign = events.filter(~ours)["answer_id"].n_unique()
    there = [name for name in TABLES if workspace.source(name).is_file()]
    tables = {name: pq.read_table(workspace.source(name)) for name in there}
    known = places.filter(
        *(
            pl.col(key).is_in(tables[table][key].to_pylist())
            for table, key in (
                ("users", columns.USER_ID),
                ("pois", columns.POI_ID),
                ("scenarios", columns.SCENARIO_ID),
            )
        )
    )
    log = pq.read_table(workspace.source("impressions"))
    # What happened is nobody's simulation: true probabilities, where the log has them, are not carried on.
    tables["impressions"] = _appended(log, known, schema)
    dataset = Dataset(schema=replace(schema, split=_moved(schema, tables["impressions"])), tables=tables)
    return dataset, Exported(
        rows=len(known),
        clicks=int(known[columns.CLICK].sum()),
        orders=int(known[columns.ORDER].sum()),
        waiting=waiting,
        unknown=len(places) - len(known),
        foreign=foreign,
    )


def _events(engine: Engine) -> pl.DataFrame:
    """A row an event, with what is known of its answer."""
    joined = select(*(column.label(name) for name, (column, _) in _EVENT.items())).join_from(
        EVENTS, ANSWERS, ANSWERS.c.answer_id == EVENTS.c.answer_id
    )
    schema = {name: dtype for name, (_, dtype) in _EVENT.items()}
    events = pl.DataFrame(schema=schema)
    with engine.connect().execution_options(stream_results=True) as db:
        for part in db.execute(joined).partitions(READ_ROWS):
            events.extend(pl.DataFrame([tuple(row) for row in part], schema=schema, orient="row"))
    return events


def _places(events: pl.DataFrame, until_us: int, wait_us: int) -> tuple[pl.DataFrame, int]:
    """A row a place of an answer, with answer and outcome; and how many answers are too young."""
    young = events.filter(pl.col("time_us") > until_us)
    clicked, ordered = (_any(*outcomes) for outcomes in ((Outcome.CLICKED, Outcome.ORDERED), (Outcome.ORDERED,)))
    seen = pl.col("outcome") == Outcome.SHOWN.value
    after = pl.col(HAPPENED).filter(~seen).max()
    # Of a place that was shown twice, both of the first position.
    shows = (pl.col(name).filter(seen) for name in (columns.POSITION, columns.PROPENSITY))
    position, propensity = (column.sort_by(pl.col(columns.POSITION).filter(seen), nulls_last=True) for column in shows)
    places = (
        events.filter(pl.col("time_us") <= until_us)
        .group_by("answer_id", columns.POI_ID)
        .agg(
            pl.exclude("outcome", columns.POSITION, columns.PROPENSITY, HAPPENED).first(),
            clicked.cast(pl.Int8).alias(columns.CLICK),
            ordered.cast(pl.Int8).alias(columns.ORDER),
            position.first(),
            propensity.first(),
            pl.when(clicked).then(after).otherwise(pl.col("time_us").first() + wait_us).alias(HAPPENED),
        )
        .sort("time_us", "answer_id", columns.POSITION, columns.POI_ID, nulls_last=True)
    )
    return places, young["answer_id"].n_unique()


def _any(*outcomes: Outcome) -> pl.Expr:
    return pl.col("outcome").is_in([outcome.value for outcome in outcomes]).any()


def _appended(log: pa.Table, places: pl.DataFrame, schema: Schema) -> pa.Table:
    """The log without earlier rows of the same answers, and these places behind it."""
    requests = pa.array([f"{REQUEST}{answer}" for answer in places["answer_id"]], pa.string())
    base = log.filter(pc.invert(pc.is_in(log[columns.REQUEST_ID], value_set=requests)))
    first = (pc.max(base[columns.ROW_ID]).as_py() or 0) + 1
    inputs = [json.loads(text) for text in places["scene_inputs"]]
    rows = {
        columns.ROW_ID: pa.array(range(first, first + len(places)), pa.int64()),
        columns.REQUEST_ID: requests,
        columns.EVENT_TIMESTAMP: places["time_us"].cast(pl.Datetime("us", "UTC")).to_arrow(),
        columns.OUTCOME_TIMESTAMP: places[HAPPENED].cast(pl.Datetime("us", "UTC")).to_arrow(),
        **{field.name: [told.get(field.name) for told in inputs] for field in schema.request_fields},
    }
    same = (columns.USER_ID, columns.POI_ID, columns.SCENARIO_ID, columns.CLICK, columns.ORDER, columns.POSITION)
    rows |= {name: places[name].to_arrow() for name in (*same, columns.PROPENSITY, columns.LATITUDE, columns.LONGITUDE)}
    wanted = schema.tables()["impressions"]
    return pa.concat_tables([base.cast(wanted), pa.table({name: rows[name] for name in wanted.names}).cast(wanted)])


def _moved(schema: Schema, log: pa.Table) -> Split:
    """The log ends with the local day of its last row; valid and test part begin as much later as it ends, unless one
    of them would be empty, as after a gap in the log: then they begin where they did."""
    split, zone = schema.split, ZoneInfo(schema.timezone)
    last: datetime = pc.max(log[columns.EVENT_TIMESTAMP]).as_py().astimezone(zone)
    midnight = datetime.combine(last.date() + timedelta(days=1), datetime.min.time(), zone).astimezone(UTC)
    by = max(midnight - split.end, timedelta(0))
    later = Split(train=split.train, valid=split.valid + by, test=split.test + by, end=split.end + by)
    times = log[columns.EVENT_TIMESTAMP]
    for start, end in ((later.valid, later.test), (later.test, later.end)):
        if not pc.any(pc.and_(pc.greater_equal(times, start), pc.less(times, end))).as_py():
            return replace(split, end=later.end)
    return later


def _micros(value: datetime | timedelta) -> int:
    since = value - datetime(1970, 1, 1, tzinfo=UTC) if isinstance(value, datetime) else value
    return since // timedelta(microseconds=1)
