"""What was dealt with: ids of clicks, the position in each source, and messages that were no clicks.

All of one step is there after one transaction or not at all, and steps of one source do not overlap. Any database that
SQLAlchemy speaks to will do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError, IntegrityError

from feature_repo.streaming.click import Click
from feature_repo.streaming.source import Message

MOST_IDS = 500  # of one query
DAY_US = 24 * 3600 * 1_000_000
_METADATA = MetaData()
_SEEN = Table(
    "seen_clicks",
    _METADATA,
    Column("event_id", String(256), primary_key=True),
    Column("time_us", BigInteger, nullable=False, index=True),
)
_POSITIONS = Table(
    "positions", _METADATA, Column("source", String(512), primary_key=True), Column("position", String(64))
)
_REJECTED = Table(
    "rejected",
    _METADATA,
    Column("number", Integer, primary_key=True),
    Column("source", String(512), nullable=False),
    Column("position", String(64), nullable=False, index=True),
    Column("text", LargeBinary, nullable=False),
    Column("reason", String, nullable=False),
)


@dataclass(frozen=True)
class Rejected:
    """A message that could not be used, and why."""

    message: Message
    reason: str


class Overtaken(Exception):
    """Another process dealt with what this one was about to."""


class Ledger:
    """The record of one stream of clicks.

    Args:
        url: of SQLAlchemy, such as `sqlite:////data/city/stream.db`.
        remember_days: how long ids are kept, by the time of their click; a repetition that comes later than that is
            taken for a new click.
    """

    def __init__(self, url: str, remember_days: int = 30) -> None:
        self._engine = create_engine(url)
        self._remember_us = remember_days * DAY_US
        for table in _METADATA.sorted_tables:
            try:
                table.create(self._engine, checkfirst=True)
            except DatabaseError:  # another process made it meanwhile; of anything else the same is said again
                table.create(self._engine, checkfirst=True)

    def position(self, source: str) -> str | None:
        """After which message to go on; None: nothing was read yet."""
        with self._engine.connect() as db:
            return db.execute(select(_POSITIONS.c.position).where(_POSITIONS.c.source == source)).scalar()

    @contextmanager
    def turn(self, source: str, position: str | None) -> Iterator[Turn]:
        """One step of a source, from the state that it reads to the record of what it did.

        While it lasts, another process's turn fails with OperationalError. SQLite, a file of one machine, locks nothing
        before the end: there, `files.locked` keeps other processes away.

        Args:
            position: after which the step goes on.
        Raises:
            Overtaken: the record says another position.
        """
        if position is None:
            self._enter(source)
        with self._engine.begin() as db:
            asked = select(_POSITIONS.c.position).where(_POSITIONS.c.source == source).with_for_update(nowait=True)
            found = db.execute(asked).scalar()
            if found != position:
                raise Overtaken(f"{source} was read on to {found} by another process, or again from its beginning")
            yield Turn(db, source, self._remember_us)

    def _enter(self, source: str) -> None:
        """Only a row that is there can be locked."""
        with suppress(IntegrityError), self._engine.begin() as db:  # another process was as quick
            if not db.execute(select(_POSITIONS.c.source).where(_POSITIONS.c.source == source)).first():
                db.execute(insert(_POSITIONS), {"source": source, "position": None})

    def forget(self) -> None:
        """Have every source read from its beginning and every click merged once more; what was rejected stays."""
        with self._engine.begin() as db:
            db.execute(update(_POSITIONS).values(position=None))
            db.execute(delete(_SEEN))

    def rejected(self) -> list[Rejected]:
        """Every message that was no click, to be looked at, mended and sent again."""
        with self._engine.connect() as db:
            found = db.execute(select(_REJECTED.c.position, _REJECTED.c.text, _REJECTED.c.reason))
            return [Rejected(Message(position, text), reason) for position, text, reason in found]


class Turn:
    """What a step may ask and say while it has the turn."""

    def __init__(self, db: Connection, source: str, remember_us: int) -> None:
        self._db, self._source, self._remember_us = db, source, remember_us

    def seen(self, event_ids: Collection[str]) -> set[str]:
        """Which of these were dealt with."""
        ids, found = list(event_ids), set[str]()
        for start in range(0, len(ids), MOST_IDS):
            some = ids[start : start + MOST_IDS]
            found |= set(self._db.execute(select(_SEEN.c.event_id).where(_SEEN.c.event_id.in_(some))).scalars())
        return found

    def commit(self, position: str, clicks: Sequence[Click], rejected: Sequence[Rejected]) -> None:
        """Put the step on record. What was rejected before and came again is entered once."""
        if clicks:
            rows = [{"event_id": click.event_id, "time_us": click.time_us} for click in clicks]
            self._db.execute(insert(_SEEN), rows)
            newest = max(click.time_us for click in clicks)
            self._db.execute(delete(_SEEN).where(_SEEN.c.time_us < newest - self._remember_us))
        for one in rejected:
            row = {"source": self._source, "position": one.message.position, "text": one.message.text}
            if not self._db.execute(select(_REJECTED.c.number).filter_by(**row)).first():
                self._db.execute(insert(_REJECTED), {**row, "reason": one.reason})
        self._db.execute(update(_POSITIONS).where(_POSITIONS.c.source == self._source).values(position=position))
