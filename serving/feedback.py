"""The durable log of feedback: what was shown, clicked and ordered of which answer, in SQL, each event once.

Callers wait while one thread writes what all of them brought in one transaction (group commit): an event that was
acknowledged is on disk. SQLite is kept in WAL mode with full synchronisation; PostgreSQL does that by itself.

Where nothing is brought, that thread asks from time to time whether the database is there. While it is away, or hangs,
events are refused at once; it may be away when a server starts, and is used as soon as it comes.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, Engine, func, select

from feature_repo import columns
from serving.attribution import Attribution
from serving.feedback_tables import ANSWERS, EVENTS, INSERTS, FeedbackUnavailable, engine_of, make_tables

log = logging.getLogger(__name__)
ROWS = 500  # of one statement
CLOSE_S = 10.0
ASK_S = 2.0  # between questions whether the database is there
ANSWER_S = 10.0  # a database that takes longer hangs
GROUP_EVENTS = 5_000  # of one transaction, about


class Outcome(Enum):
    """What became of one place of an answer."""

    SHOWN = "shown"
    CLICKED = "clicked"
    ORDERED = "ordered"


@dataclass(frozen=True, kw_only=True)
class FeedbackEvent:
    """
    Attributes:
        event_id: the caller's own, unique among the events of one answer.
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

    @property
    def key(self) -> tuple[str, str]:
        """By which it counts once."""
        return self.answer.answer_id, self.event_id


@dataclass(frozen=True)
class Recorded:
    """How many events were new, and how many had come before."""

    new: int
    repeated: int


class FeedbackBusy(RuntimeError):
    """More events are waiting than are kept waiting; the caller may come again."""


@dataclass(frozen=True)
class _Brought:
    """Events of one caller, who waits for `done`."""

    events: Sequence[FeedbackEvent]
    done: Future[Recorded]


class FeedbackLog:
    """The log of one database, which several servers may share; safe to call from threads.

    Args:
        url: of SQLAlchemy: SQLite or PostgreSQL. The database need not be there yet.
        waiting: callers that wait at most.
        lock_seconds: how long SQLite waits for another process that writes.
        ask_seconds: between questions whether the database is there.
        answer_seconds: how long events wait to be stored; a database that takes longer counts as away.
    Raises:
        FeedbackUnavailable: the URL names no database that can be used.
    """

    def __init__(
        self,
        url: str,
        *,
        waiting: int = 256,
        lock_seconds: float = 5.0,
        ask_seconds: float = ASK_S,
        answer_seconds: float = ANSWER_S,
    ) -> None:
        self._brought: queue.Queue[_Brought | None] = queue.Queue(maxsize=waiting)
        self._engine = engine_of(url, lock_seconds)
        self._ask_s, self._answer_s = ask_seconds, answer_seconds
        self._has_tables = False
        self._is_away = False  # until the first question was answered, callers wait for it
        self._busy_since: float | None = None
        self._writer = threading.Thread(target=self._work, name="feedback", daemon=True)
        self._door = threading.Lock()  # nothing is brought after the end was
        self._closed = False
        self._writer.start()

    @property
    def available(self) -> bool:
        """Whether the database answered when it was last asked, and does not hang."""
        since = self._busy_since
        return not self._is_away and (since is None or time.monotonic() - since < self._answer_s)

    def record(self, events: Sequence[FeedbackEvent], timeout_s: float | None = None) -> Recorded:
        """Returns once all of them are on disk.

        Raises:
            FeedbackBusy: too many callers wait already.
            FeedbackUnavailable: the database is away, refused, or did not answer in time.
        """
        brought = _Brought(events, Future())
        try:
            with self._door:
                if self._closed:
                    raise FeedbackUnavailable("the server is stopping")
                if not self.available:
                    raise FeedbackUnavailable("the feedback database is away; send the events again later")
                self._brought.put_nowait(brought)
        except queue.Full:
            raise FeedbackBusy("too many events are waiting to be stored") from None
        try:
            return brought.done.result(self._answer_s if timeout_s is None else min(timeout_s, self._answer_s))
        except TimeoutError:
            raise FeedbackUnavailable("the events were not stored in time; they may be yet") from None

    def outcomes(self, answer_ids: Sequence[str]) -> dict[str, dict[str, bool]]:
        """Of each answer that something is known of, the places that were shown, and whether they were clicked.

        Raises:
            SQLAlchemyError: the database is away.
        """
        found: dict[str, dict[str, bool]] = {}
        asked = select(EVENTS.c.answer_id, EVENTS.c[columns.POI_ID], EVENTS.c.outcome)
        with self._engine.connect() as db:
            for answer_id, poi_id, outcome in db.execute(asked.where(EVENTS.c.answer_id.in_(answer_ids))):
                places = found.setdefault(answer_id, {})
                places[poi_id] = places.get(poi_id, False) or outcome != Outcome.SHOWN.value
        return found

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

    def _work(self) -> None:
        self._ask()
        for group in self._groups():
            if group:
                self._store(group)
            else:
                self._ask()

    def _ask(self) -> None:
        """Whether the database is there; one that has come gets its tables."""
        try:
            with self._busy():
                if not self._has_tables:
                    make_tables(self._engine)
                with self._engine.connect() as db:
                    db.execute(select(EVENTS.c.event_id).limit(1)).all()
        except Exception as error:  # whatever it is, the next question may be answered
            if not self._is_away:
                log.warning("the feedback database is away: %s; it is asked again and again", type(error).__name__)
            self._has_tables, self._is_away = False, True
            return
        if self._is_away:
            log.warning("the feedback database is back")
        self._has_tables, self._is_away = True, False

    def _store(self, group: Sequence[_Brought]) -> None:
        try:
            with self._busy(), self._engine.begin() as db:
                counts = write(db, [brought.events for brought in group])
        except Exception as error:  # whatever it is, callers must not wait for ever
            log.error("feedback could not be stored: %s", type(error).__name__)
            for brought in group:
                brought.done.set_exception(FeedbackUnavailable("the events could not be stored"))
            self._ask()
            return
        for brought, recorded in zip(group, counts, strict=True):
            brought.done.set_result(recorded)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _groups(self) -> Iterator[list[_Brought]]:
        """What is waiting, together; nothing where nothing came for a while; ends when the log is closed."""
        while True:
            try:
                first = self._brought.get(timeout=self._ask_s)
            except queue.Empty:
                yield []
                continue
            if first is None:
                return
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


def write(db: Connection, requests: Sequence[Sequence[FeedbackEvent]]) -> list[Recorded]:
    """Insert the events of several callers in one transaction; of each caller, how many were new."""
    insert = INSERTS[db.dialect.name]
    received_us = time.time_ns() // 1000
    answers: dict[str, dict[str, object]] = {}
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for one in (one for events in requests for one in events):
        if one.answer.answer_id not in answers:
            answers[one.answer.answer_id] = _answer_row(one.answer)
        rows.setdefault(one.key, _event_row(one, received_us))
    # In the order of their keys: two servers that insert the same rows wait for each other, and never both.
    for part in _parts([answers[key] for key in sorted(answers)]):
        db.execute(insert(ANSWERS).values(part).on_conflict_do_nothing())
    new: set[tuple[str, str]] = set()
    for part in _parts([rows[key] for key in sorted(rows)]):
        statement = insert(EVENTS).values(part).on_conflict_do_nothing()
        inserted = db.execute(statement.returning(EVENTS.c.answer_id, EVENTS.c.event_id))
        new.update((answer_id, event_id) for answer_id, event_id in inserted)
    counts = []
    for events in requests:
        first = new & {one.key for one in events}
        new -= first
        counts.append(Recorded(new=len(first), repeated=len(events) - len(first)))
    return counts


def _answer_row(answer: Attribution) -> dict[str, object]:
    context = answer.context
    return {
        "answer_id": answer.answer_id,
        "bundle": answer.bundle,
        "dataset": answer.dataset or None,
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
