"""The durable log of feedback: what was shown, clicked and ordered of which answer, in SQL, each event once.

Callers wait while one thread writes what all of them brought in one transaction (group commit): an event that was
acknowledged is on disk. SQLite is kept in WAL mode with full synchronisation; PostgreSQL does that by itself.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from feature_repo import columns
from feature_repo.workspace import Workspace
from serving.attribution import Attribution

log = logging.getLogger(__name__)
URL_VARIABLE = "SCENERANK_FEEDBACK_URL"  # may hold a password: never an option of a command line
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
ROWS = 500  # of one statement
CLOSE_S = 10.0
MAKERS = 5  # servers that may start at the same time on an empty database
GROUP_EVENTS = 5_000  # of one transaction, about
_METADATA = MetaData()
ANSWERS = Table(
    "answers",
    _METADATA,
    Column("answer_id", String(64), primary_key=True),
    Column("bundle", String(64), nullable=False),
    Column(columns.USER_ID, String(256), nullable=False),
    Column(columns.SCENARIO_ID, String(256), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column(columns.LATITUDE, Float(53)),
    Column(columns.LONGITUDE, Float(53)),
    Column("scene_inputs", Text, nullable=False),
)
EVENTS = Table(
    "feedback_events",
    _METADATA,
    Column("event_id", String(256), primary_key=True),
    Column("answer_id", String(64), nullable=False, index=True),
    Column(columns.POI_ID, String(256), nullable=False),
    Column("outcome", String(8), nullable=False),
    Column(columns.POSITION, Integer),
    Column("time_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column(columns.PROPENSITY, Float(53)),
)


class Outcome(Enum):
    """What became of one place of an answer."""

    SHOWN = "shown"
    CLICKED = "clicked"
    ORDERED = "ordered"


@dataclass(frozen=True, kw_only=True)
class FeedbackEvent:
    """
    Attributes:
        event_id: the caller's own.
        position: where the place was shown, from 0; None: unknown.
        time_us: microseconds since the epoch UTC.
        propensity: of the place to stand at its position, given those above it; None: unknown.
    """

    event_id: str
    answer: Attribution
    poi_id: str
    outcome: Outcome
    position: int | None
    time_us: int
    propensity: float | None = None


@dataclass(frozen=True)
class Recorded:
    """How many events were new, and how many had come before."""

    new: int
    repeated: int


class FeedbackBusy(RuntimeError):
    """More events are waiting than are kept waiting; the caller may come again."""


class FeedbackUnavailable(OSError):
    """Events cannot be stored now; none of them was acknowledged."""


@dataclass(frozen=True)
class _Brought:
    """Events of one caller, who waits for `done`."""

    events: Sequence[FeedbackEvent]
    done: Future[Recorded]


class FeedbackLog:
    """The log of one database, which several servers may share; safe to call from threads.

    Args:
        url: of SQLAlchemy: SQLite or PostgreSQL.
        waiting: callers that wait at most.
        lock_seconds: how long SQLite waits for another process that writes.
    Raises:
        FeedbackUnavailable: the database cannot be opened, or is of another kind.
    """

    def __init__(self, url: str, *, waiting: int = 256, lock_seconds: float = 5.0) -> None:
        self._brought: queue.Queue[_Brought | None] = queue.Queue(maxsize=waiting)
        self._engine = opened(url, lock_seconds)
        self._writer = threading.Thread(target=self._write_all, name="feedback", daemon=True)
        self._door = threading.Lock()  # nothing is brought after the end was
        self._closed = False
        self._writer.start()

    def record(self, events: Sequence[FeedbackEvent], timeout_s: float | None = None) -> Recorded:
        """Returns once all of them are on disk.

        Raises:
            FeedbackBusy: too many callers wait already.
            FeedbackUnavailable: the database refused, or did not answer in time.
        """
        brought = _Brought(events, Future())
        try:
            with self._door:
                if self._closed:
                    raise FeedbackUnavailable("the server is stopping")
                self._brought.put_nowait(brought)
        except queue.Full:
            raise FeedbackBusy("too many events are waiting to be stored") from None
        try:
            return brought.done.result(timeout_s)
        except TimeoutError:
            raise FeedbackUnavailable("the events were not stored in time; they may be yet") from None

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Write what was brought, then let go of the database; False for one that hangs, with callers that wait."""
        with self._door:
            self._closed = True
        with suppress(queue.Full):
            self._brought.put(None, timeout=timeout_s)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            log.error("the feedback database does not answer; what waits was not acknowledged, and is left")
            return False
        self._engine.dispose()
        return True

    def _write_all(self) -> None:
        for group in self._groups():
            try:
                with self._engine.begin() as db:
                    counts = write(db, [brought.events for brought in group])
            except Exception as error:  # whatever it is, callers must not wait for ever
                log.error("feedback could not be stored: %s", type(error).__name__)
                for brought in group:
                    brought.done.set_exception(FeedbackUnavailable("the events could not be stored"))
                continue
            for brought, recorded in zip(group, counts, strict=True):
                brought.done.set_result(recorded)

    def _groups(self) -> Iterator[list[_Brought]]:
        """What is waiting, together; ends when the log is closed."""
        while (first := self._brought.get()) is not None:
            group, events = [first], len(first.events)
            while events < GROUP_EVENTS:
                try:
                    more = self._brought.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    yield group
                    return
                group.append(more)
                events += len(more.events)
            yield group


def url_of(workspace: Workspace) -> str:
    """The database that the environment names, else the workspace's; it may hold a password."""
    return os.environ.get(URL_VARIABLE) or f"sqlite:///{workspace.feedback}"


def opened(url: str, lock_seconds: float = 5.0) -> Engine:
    """The database, with its tables. Raises FeedbackUnavailable, without repeating the URL, which may hold a secret."""
    try:
        engine = create_engine(url, hide_parameters=True)  # ids belong in no log
        if engine.dialect.name not in INSERTS:
            raise FeedbackUnavailable(f"feedback is kept in SQLite or PostgreSQL, not in {engine.dialect.name}")
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", lambda connection, _: _durable(connection, lock_seconds))
        _make_tables(engine)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise FeedbackUnavailable(
            f"the feedback database cannot be opened ({type(error).__name__}): is {URL_VARIABLE} right, and is it up?"
        ) from None  # the cause may repeat the URL
    return engine


def _make_tables(engine: Engine) -> None:
    """Where another server makes the same table at the same time, one of the two is told that it is there."""
    for attempt in range(MAKERS):
        try:
            with engine.begin() as db:
                _METADATA.create_all(db)
                return _add_columns(db)
        except SQLAlchemyError:
            if attempt == MAKERS - 1:
                raise


def _add_columns(db: Connection) -> None:
    """A log of an earlier version lacks columns that were added since; what it holds is unknown there."""
    for table in _METADATA.sorted_tables:
        there = {column["name"] for column in inspect(db).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                declared = CreateColumn(column).compile(dialect=db.dialect)
                db.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {declared}"))


def _durable(connection: Any, lock_seconds: float) -> None:
    for setting in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {round(1000 * lock_seconds)}"):
        connection.execute(f"PRAGMA {setting}")


def write(db: Connection, requests: Sequence[Sequence[FeedbackEvent]]) -> list[Recorded]:
    """Insert the events of several callers in one transaction; of each caller, how many were new."""
    insert = INSERTS[db.dialect.name]
    received_us = time.time_ns() // 1000
    answers: dict[str, dict[str, object]] = {}
    rows: dict[str, dict[str, object]] = {}
    for one in (one for events in requests for one in events):
        answers.setdefault(one.answer.answer_id, _answer_row(one.answer))
        rows.setdefault(one.event_id, _event_row(one, received_us))
    # In the order of their keys: two servers that insert the same rows wait for each other, and never both.
    for part in _parts([answers[key] for key in sorted(answers)]):
        db.execute(insert(ANSWERS).values(part).on_conflict_do_nothing())
    new: set[str] = set()
    for part in _parts([rows[key] for key in sorted(rows)]):
        statement = insert(EVENTS).values(part).on_conflict_do_nothing().returning(EVENTS.c.event_id)
        new.update(db.execute(statement).scalars())
    counts = []
    for events in requests:
        first = new & {one.event_id for one in events}
        new -= first
        counts.append(Recorded(new=len(first), repeated=len(events) - len(first)))
    return counts


def _answer_row(answer: Attribution) -> dict[str, object]:
    context = answer.context
    return {
        "answer_id": answer.answer_id,
        "bundle": answer.bundle,
        columns.USER_ID: context.user_id,
        columns.SCENARIO_ID: context.scenario_id,
        "time_us": answer.time_us,
        columns.LATITUDE: context.place and context.place.latitude,
        columns.LONGITUDE: context.place and context.place.longitude,
        "scene_inputs": json.dumps(dict(context.scene_inputs), ensure_ascii=False),
    }


def _event_row(one: FeedbackEvent, received_us: int) -> dict[str, object]:
    return {
        "event_id": one.event_id,
        "answer_id": one.answer.answer_id,
        columns.POI_ID: one.poi_id,
        "outcome": one.outcome.value,
        columns.POSITION: one.position,
        "time_us": one.time_us,
        "received_us": received_us,
        columns.PROPENSITY: one.propensity,
    }


def _parts(rows: Sequence[dict[str, object]]) -> Iterator[Sequence[dict[str, object]]]:
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS]


def counts(engine: Engine) -> dict[str, int]:
    """Events by outcome."""
    with engine.connect() as db:
        found = db.execute(select(EVENTS.c.outcome, func.count()).group_by(EVENTS.c.outcome)).all()
    return {**{outcome.value: 0 for outcome in Outcome}, **{outcome: count for outcome, count in found}}
