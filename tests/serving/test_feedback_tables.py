"""The tables of the feedback log: what older versions stored is there, as it was, in those of today."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, inspect, select, text

from serving.feedback import FeedbackLog, Recorded
from serving.feedback_tables import ANSWERS, EVENTS, make_tables, opened
from tests.serving.test_feedback import brought, stored

# As the first version made them: an event's id was unique among all events.
FIRST = (
    """CREATE TABLE answers (
        answer_id VARCHAR(64) NOT NULL, bundle VARCHAR(64) NOT NULL, user_id VARCHAR(256) NOT NULL,
        scenario_id VARCHAR(256) NOT NULL, time_us BIGINT NOT NULL, latitude FLOAT, longitude FLOAT,
        scene_inputs TEXT NOT NULL, PRIMARY KEY (answer_id))""",
    """CREATE TABLE feedback_events (
        event_id VARCHAR(256) NOT NULL, answer_id VARCHAR(64) NOT NULL, poi_id VARCHAR(256) NOT NULL,
        outcome VARCHAR(8) NOT NULL, position INTEGER, time_us BIGINT NOT NULL, received_us BIGINT NOT NULL,
        PRIMARY KEY (event_id))""",
    "CREATE INDEX ix_feedback_events_answer_id ON feedback_events (answer_id)",
    "INSERT INTO answers VALUES ('a', 'b', 'u1', 'search', 10, 60.0, 25.0, '{}')",
    "INSERT INTO feedback_events VALUES ('a/0', 'a', 'p0', 'shown', 0, 20, 30)",
    "INSERT INTO feedback_events VALUES ('x', 'a', 'p1', 'ordered', NULL, 21, 31)",
)
COLUMNS = ("answer_id", "event_id", "poi_id", "outcome", "position", "time_us", "received_us")
KEPT = [("a", "a/0", "p0", "shown", 0, 20, 30), ("a", "x", "p1", "ordered", None, 21, 31)]


@pytest.fixture
def first(url: str) -> str:
    """A database as the first version left it."""
    engine = create_engine(url)
    with engine.begin() as db:
        for statement in FIRST:
            db.execute(text(statement))
    engine.dispose()
    return url


def events(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as db:
        ordered = select(*(EVENTS.c[name] for name in COLUMNS)).order_by(EVENTS.c.answer_id, EVENTS.c.event_id)
        return [tuple(row) for row in db.execute(ordered)]


def test_what_the_first_version_stored_is_kept_and_counts_once(first: str) -> None:
    engine = opened(first)
    assert events(engine) == KEPT
    assert inspect(engine).get_pk_constraint(EVENTS.name)["constrained_columns"] == ["answer_id", "event_id"]
    with engine.connect() as db:
        assert db.execute(ANSWERS.select()).mappings().one()["dataset"] is None
        assert db.execute(select(EVENTS.c.propensity)).scalars().all() == [None, None]
    assert sorted(inspect(engine).get_table_names()) == ["answers", "feedback_events"]
    make_tables(engine)  # again, as at every start
    assert events(engine) == KEPT
    log = FeedbackLog(first)
    assert log.record(brought("a", 2)) == Recorded(new=1, repeated=1)  # a/0 came before
    log.close()
    assert stored(first) == ["a/0", "a/1", "x"]


def test_servers_that_start_together_bring_a_database_up_to_date_once(first: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(opened, [first] * 6))
    assert all(events(engine) == KEPT for engine in engines)


def test_a_change_that_fails_changes_nothing(first: str) -> None:
    engine = create_engine(first)
    with engine.begin() as db:  # in the way of the table that SQLite puts the old one aside as, and of the new key
        db.execute(text("CREATE TABLE feedback_events_by_id (x INTEGER)"))
        if engine.dialect.name == "postgresql":
            db.execute(text("ALTER TABLE feedback_events ALTER answer_id DROP NOT NULL"))
            db.execute(text("INSERT INTO feedback_events VALUES ('z', NULL, 'p', 'shown', 0, 1, 1)"))
    before = sorted(map(str, events(engine)))
    with pytest.raises(OSError, match="cannot be opened"):
        opened(first)
    assert sorted(map(str, events(engine))) == before
    with engine.begin() as db:
        db.execute(text("DROP TABLE feedback_events_by_id"))
        db.execute(text("DELETE FROM feedback_events WHERE answer_id IS NULL"))
    assert events(opened(first)) == KEPT
