"""The tables of the feedback log in SQLite or PostgreSQL: how they are reached, made, and brought up to date.

An event is known by its answer and its id together: callers of different answers may count 1, 2, 3 alike. An answer
says of which data set it was. Tables of older versions, where ids were unique among all events and answers did not say
so, or columns are missing, are changed in one transaction.
"""

from __future__ import annotations

import os
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
    inspect,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from feature_repo import columns
from feature_repo.workspace import Workspace

URL_VARIABLE = "SCENERANK_FEEDBACK_URL"  # may hold a password: never an option of a command line
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# A PostgreSQL that does not answer is given up: while a connection is made, and on one whose other end is gone.
LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
PATIENCE = {
    "connect_timeout": "5",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
MAKERS = 0x5CE9E  # the lock under which servers of one PostgreSQL make tables, one after the other
METADATA = MetaData()
ANSWERS = Table(
    "answers",
    METADATA,
    Column("answer_id", String(64), primary_key=True),
    Column("bundle", String(64), nullable=False),
    Column("dataset", String(256)),  # null: of an older server, which did not say
    Column(columns.USER_ID, String(256), nullable=False),
    Column(columns.SCENARIO_ID, String(256), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column(columns.LATITUDE, Float(53)),
    Column(columns.LONGITUDE, Float(53)),
    Column("scene_inputs", Text, nullable=False),
)
EVENTS = Table(
    "feedback_events",
    METADATA,
    Column("answer_id", String(64), primary_key=True),
    Column("event_id", String(256), primary_key=True),
    Column(columns.POI_ID, String(256), nullable=False),
    Column("outcome", String(8), nullable=False),
    Column(columns.POSITION, Integer),
    Column("time_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column(columns.PROPENSITY, Float(53)),
)


class FeedbackUnavailable(OSError):
    """Events cannot be stored now; none of them was acknowledged."""


def url_of(workspace: Workspace) -> str:
    """The database that the environment names, else the workspace's; it may hold a password."""
    return os.environ.get(URL_VARIABLE) or f"sqlite:///{workspace.feedback}"


def engine_of(url: str, lock_seconds: float = 5.0) -> Engine:
    """The database, which is not reached for yet. Raises FeedbackUnavailable for a URL that names none, without
    repeating it: it may hold a secret."""
    try:
        where = make_url(url)
        if where.drivername in LIBPQ:
            where = where.set(query={**PATIENCE, **where.query})
        engine = create_engine(where, hide_parameters=True, pool_pre_ping=True)  # ids belong in no log
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise FeedbackUnavailable(
            f"the feedback database cannot be used ({type(error).__name__}): is {URL_VARIABLE} right?"
        ) from None  # the cause may repeat the URL
    if engine.dialect.name not in INSERTS:
        raise FeedbackUnavailable(f"feedback is kept in SQLite or PostgreSQL, not in {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: _durable(connection, lock_seconds))
    return engine


def opened(url: str) -> Engine:
    """The database, with its tables. Raises FeedbackUnavailable where it is away, or the URL names none."""
    engine = engine_of(url)
    try:
        make_tables(engine)
    except SQLAlchemyError as error:
        raise FeedbackUnavailable(
            f"the feedback database cannot be opened ({type(error).__name__}): is {URL_VARIABLE} right, and is it up?"
        ) from None  # the cause may repeat the URL
    return engine


def make_tables(engine: Engine) -> None:
    """Make what is missing and change what is of an older version; servers that start together take turns."""
    with engine.begin() as db:
        if engine.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            db.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MAKERS})")
        there = inspect(db)
        for table in (ANSWERS, EVENTS):
            if there.has_table(table.name):
                _add_columns(db, table, {column["name"] for column in there.get_columns(table.name)})
        if there.has_table(EVENTS.name):
            key = there.get_pk_constraint(EVENTS.name)
            if key["constrained_columns"] == ["event_id"]:
                _know_events_by_answer(db, str(key["name"]))
        METADATA.create_all(db)


def _add_columns(db: Connection, table: Table, there: set[str]) -> None:
    """What was added since a table was made is unknown in the rows that it has."""
    for column in table.columns:
        if column.name not in there:
            declared = CreateColumn(column).compile(dialect=db.dialect)
            db.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {declared}")


def _know_events_by_answer(db: Connection, key: str) -> None:
    """From a primary key of the event's id alone to one of the answer and the event's id."""
    db.exec_driver_sql("DROP INDEX IF EXISTS ix_feedback_events_answer_id")  # the new key does its work
    if db.dialect.name == "postgresql":
        db.exec_driver_sql(f'ALTER TABLE {EVENTS.name} DROP CONSTRAINT "{key}", ADD PRIMARY KEY (answer_id, event_id)')
        return
    # SQLite cannot change a key.
    names = ", ".join(column.name for column in EVENTS.columns)
    db.exec_driver_sql(f"ALTER TABLE {EVENTS.name} RENAME TO feedback_events_by_id")
    EVENTS.create(db)
    db.exec_driver_sql(f"INSERT INTO {EVENTS.name} ({names}) SELECT {names} FROM feedback_events_by_id")
    db.exec_driver_sql("DROP TABLE feedback_events_by_id")


def _durable(connection: Any, lock_seconds: float) -> None:
    for setting in (f"busy_timeout = {round(1000 * lock_seconds)}", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
