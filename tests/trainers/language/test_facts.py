"""Facts against a log that can be read by eye, and against everything that happens later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo import columns
from feature_repo.datasets.schema import BORDERS, TIME, Schema
from feature_repo.workspace import Workspace
from trainers.language.facts import Facts, FactsConfig, History, Place
from trainers.language.prompts import LEVELS, Level, read_prompt
from trainers.language.snapshots import EPOCH, Question, Wording, read_questions
from trainers.language.texts import TextError

DAILY = FactsConfig(every_days=1, liked=2, left=2, kinds=2, clicks=2)
PLACES = [
    ("p1", "bakery", "", "rye bread"),
    ("p2", "noodles", "", "ramen"),
    ("p3", "noodles", "", "udon"),
    ("p4", "bar", "", None),
]
# The log begins at 8:00 of 2 March; the midnight after its first day is hour 16.
SHOWN = [
    (0.0, "u1", "p1", True),
    (0.0, "u1", "p4", False),
    (1.0, "u1", "p2", True, "clear", 0.01, "search"),
    (1.0, "u1", "p3", False, "clear", 0.01, "search"),
    (2.0, "u1", "p3", True, "clear", 0.01, "search"),
    (3.0, "u1", "p1", True),
    (4.0, "u2", "p4", True),
    (4.0, "u2", "p1", False),
    (17.0, "u3", "p1", True),
]
MIDNIGHT = datetime(2026, 3, 3, tzinfo=UTC)


def at(hours: float) -> datetime:
    return datetime(2026, 3, 2, 8, tzinfo=UTC) + timedelta(hours=hours)


WORDING = Wording(
    prompts={"scenario": read_prompt("scenario", "contrast"), "user": read_prompt("user", "interests")},
    tell={level: read_prompt(level, "tell") for level in LEVELS},  # every slot is in use
    platform="A town",
)


def asked(workspace: Workspace, config: FactsConfig, model_us: int = 0) -> dict[Level, list[Question]]:
    """The questions of all snapshots."""
    return read_questions(workspace, config, WORDING, model_us, lambda what, done, total: None)


def as_of(workspace: Workspace, time: datetime, config: FactsConfig = DAILY) -> Facts:
    with History(workspace, config) as history:
        return history.as_of(time)


def place(number: int) -> Place:
    name, category, _, specialty = PLACES[number - 1]
    return Place(name, category, specialty)


def test_snapshots_begin_one_span_after_the_midnight_before_the_log(street: Callable[..., Workspace]) -> None:
    workspace = street(PLACES, SHOWN)
    with History(workspace, DAILY) as history:
        assert history.times() == [datetime(2026, 3, day, tzinfo=UTC) for day in (3, 4, 5, 6)]
    with History(workspace, replace(DAILY, every_days=3)) as history:
        assert history.times() == [datetime(2026, 3, 5, tzinfo=UTC)]
    with (
        History(workspace, replace(DAILY, every_days=7)) as history,
        pytest.raises(TextError, match="shorter than the 7"),
    ):
        history.times()


def test_what_is_known_of_users(street: Callable[..., Workspace]) -> None:
    first, second = as_of(street(PLACES, SHOWN), MIDNIGHT).users
    assert (first.id, first.profile, first.requests, first.shown, first.clicked) == ("u1", "This is u1.", 4, 6, 4)
    # p1 was clicked twice and stands once; p2, clicked before p3 and p1, is beyond the two newest; p3 was left once and
    # clicked later, so it is not among those left.
    assert first.liked == {"home": (place(1),), "search": (place(3),)}
    assert first.left == {"home": (place(4),)}
    assert first.kinds == {"home": ("bakery",), "search": ("noodles",)}
    assert first.likes == ("bakery", "noodles")  # twice each, the bakery more recently
    assert first.specialties == ("rye bread", "udon")
    assert first.recent == ("p1", "p3")
    assert second.specialties == () and second.left == {"home": (place(1),)}


def test_what_is_known_of_scenarios(street: Callable[..., Workspace]) -> None:
    home, search = as_of(street(PLACES, SHOWN), MIDNIGHT).scenarios
    assert (home.id, home.name, home.description) == ("home", "Home", "The first page.")
    assert (home.requests, home.shown, home.clicked) == (3, 5, 3)
    assert (search.requests, search.shown, search.clicked) == (2, 3, 2)
    assert home.kinds == ("bakery", "bar") and search.kinds == ("noodles",)
    # Of all clicks two fifths are at bakeries and two fifths at noodles: these are chosen most everywhere.
    assert home.shared == ("bakery",) and search.shared == ("noodles",)
    assert home.more == ("bakery", "bar") and home.less == ("noodles",)
    assert search.more == ("noodles",) and search.less == ("bakery", "bar")
    assert home.elsewhere == search.elsewhere == 5 / 8
    assert home.recent == ("p4", "p1", "p1")


@pytest.mark.parametrize(("late", "seen"), [(timedelta(0), False), (timedelta(microseconds=-1), True)])
def test_an_outcome_at_the_moment_of_the_snapshot_comes_too_late(
    street: Callable[..., Workspace], late: timedelta, seen: bool
) -> None:
    workspace = street(PLACES, SHOWN)
    path = workspace.source("impressions")
    rows = pq.read_table(path).to_pylist()
    last = next(row for row in rows if row[columns.USER_ID] == "u2" and row[columns.CLICK])
    last[columns.OUTCOME_TIMESTAMP] = MIDNIGHT + late
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    facts = as_of(workspace, MIDNIGHT)
    assert (facts.users[1].clicked, facts.scenarios[0].clicked) == ((1, 3) if seen else (0, 2))
    assert facts.users[1].recent == (("p4",) if seen else ())


@pytest.mark.parametrize("column", [columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP])
@pytest.mark.parametrize("table", ["pois", "users", "scenarios"])
def test_what_became_known_too_late_is_not_told(street: Callable[..., Workspace], table: str, column: str) -> None:
    workspace = street(PLACES, SHOWN)
    path = workspace.source(table)
    rows = pq.read_table(path).to_pylist()
    rows[0][column] = MIDNIGHT
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    facts = as_of(workspace, MIDNIGHT)
    assert ("bakery" in facts.users[0].likes) == (table != "pois")
    assert facts.users[0].profile == ("" if table == "users" else "This is u1.")
    assert [scenario.id for scenario in facts.scenarios] == (["search"] if table == "scenarios" else ["home", "search"])


def test_a_user_has_a_snapshot_as_soon_as_so_much_is_known(street: Callable[..., Workspace]) -> None:
    """u1's third outcome, of the request at hour 1, is known 36 seconds later; u2 and u3 never have three."""
    workspace = street(PLACES, SHOWN)
    with History(workspace, replace(DAILY, own=(3,))) as history:
        [facts] = history.own()
    [user] = facts.users
    assert facts.time == at(1.01) + timedelta(seconds=1)
    # Both outcomes of that request became known in the same second.
    assert (user.id, user.profile, user.shown, user.clicked) == ("u1", "This is u1.", 4, 2)
    assert user.likes == ("noodles", "bakery") and user.recent == ("p2", "p1")
    assert [(s.id, s.name, s.shown) for s in facts.scenarios] == [("home", "Home", 0), ("search", "Search", 0)]


def test_own_snapshots_become_questions_about_users_only(street: Callable[..., Workspace]) -> None:
    workspace = street(PLACES, SHOWN)
    regular, more = (asked(workspace, replace(DAILY, own=own)) for own in ((), (1, 3)))
    assert more["scenario"] == regular["scenario"]
    own = [question for question in more["user"] if question not in regular["user"]]
    # The first outcome of u1, u2 and u3, and the third of u1.
    assert sorted(question.key for question in own) == ["u1", "u1", "u2", "u3"]
    assert more["user"] == sorted(more["user"], key=lambda question: (question.time_us, question.key))


def test_of_snapshots_before_the_model_the_newest_is_asked_whatever_its_kind(street: Callable[..., Workspace]) -> None:
    workspace = street(PLACES, SHOWN)
    model_us = (MIDNIGHT + timedelta(minutes=1) - EPOCH) // timedelta(microseconds=1)
    users = asked(workspace, replace(DAILY, own=(1,)), model_us)["user"]
    [first] = [q for q in users if q.key == "u1" and q.time_us == model_us]
    assert "Chose 4 of 6" in first.text  # as of midnight, not after the first outcome


def borders(workspace: Workspace, **test: float) -> None:
    """Have each user's test part begin at an hour of the log."""
    times = pa.array([at(hour) for hour in test.values()], TIME)
    table = pa.table({columns.USER_ID: list(test), "valid": times, "test": times})
    pq.write_table(table, workspace.source(BORDERS))
    schema = Schema.load(workspace.schema)
    replace(schema, split=replace(schema.split, valid=schema.split.end, test=schema.split.end)).save(workspace.schema)


def test_the_test_part_of_each_user_is_left_out(street: Callable[..., Workspace]) -> None:
    workspace = street(PLACES, SHOWN)
    borders(workspace, u1=2.0, u2=4.0, u3=99.0)
    late = MIDNIGHT + timedelta(days=2)
    told = as_of(workspace, late)
    assert [(user.id, user.shown) for user in told.users] == [("u1", 6), ("u2", 2), ("u3", 1)]
    kept = as_of(workspace, late, replace(DAILY, test_part=False))
    # Of u1 the rows before hour 2 are left, of u2, whose border is at the first row, none.
    assert [(user.id, user.shown, user.clicked) for user in kept.users] == [("u1", 4, 2), ("u3", 1, 1)]
    assert sum(scenario.shown for scenario in kept.scenarios) == 5
    with History(workspace, replace(DAILY, own=(2, 5), test_part=False)) as history:
        assert [(facts.users[0].id, facts.users[0].shown) for facts in history.own()] == [("u1", 2)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(
        st.tuples(st.sampled_from(["u1", "u2", "u3"]), st.sampled_from(PLACES), st.booleans(), st.floats(0, 20)),
        max_size=8,
    ),
    by_user=st.booleans(),
)
def test_no_event_of_a_test_part_changes_a_prompt(
    street: Callable[..., Workspace], events: list[Any], by_user: bool
) -> None:
    """Whether the cut is one of the log, at hour 72, or each user's own."""
    starts = {"u1": 3.5, "u2": 5.0, "u3": 17.5} if by_user else dict.fromkeys(("u1", "u2", "u3"), 72.0)
    leaks = [(starts[user] + more, user, poi[0], click) for user, poi, click, more in events]
    found = []
    for rows in (SHOWN, [*SHOWN, *leaks]):
        workspace = street(PLACES, rows)
        if by_user:
            borders(workspace, **starts)
        found.append(asked(workspace, replace(DAILY, own=(1, 2, 4, 8), test_part=False)))
    assert found[0] == found[1]


later = st.tuples(
    st.integers(0, 10**6),  # microseconds after midnight
    st.integers(0, 10**6),  # until the outcome
    st.sampled_from(["u1", "u2", "u3", "u4"]),
    st.sampled_from(["p1", "p2", "p3", "p4"]),
    st.booleans(),
    st.sampled_from(["home", "search"]),
    st.booleans(),  # shown before midnight, and known after it
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(later, max_size=8))
def test_nothing_that_happens_later_changes_a_prompt(street: Callable[..., Workspace], events: list[Any]) -> None:
    workspace = street(PLACES, [row for row in SHOWN if row[0] < 16])
    before = questions(workspace)
    path = workspace.source("impressions")
    rows = pq.read_table(path).to_pylist()
    for number, (start, wait, user, poi, click, scenario, early) in enumerate(events):
        known = MIDNIGHT + timedelta(microseconds=start + wait)
        shown = MIDNIGHT - timedelta(minutes=1) if early else MIDNIGHT + timedelta(microseconds=start)
        rows.append(
            rows[0]
            | {
                columns.ROW_ID: 100 + number,
                columns.REQUEST_ID: f"later {number}",
                columns.EVENT_TIMESTAMP: shown,
                columns.OUTCOME_TIMESTAMP: known,
                columns.USER_ID: user,
                columns.POI_ID: poi,
                columns.CLICK: int(click),
                columns.SCENARIO_ID: scenario,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    assert questions(workspace) == before


def questions(workspace: Workspace) -> list[Question]:
    """Of the first midnight."""
    facts = as_of(workspace, MIDNIGHT)
    return [question for level in LEVELS for question in WORDING.questions(facts, level)]


def test_a_workspace_without_tables_and_numbers_that_make_no_sense_are_refused(tmp_path: Any) -> None:
    with pytest.raises(TextError, match="holds no source tables"):
        History(Workspace(tmp_path), DAILY)
    with pytest.raises(TextError, match="must be positive"):
        FactsConfig(every_days=0)
    with pytest.raises(TextError, match="own must be positive"):
        FactsConfig(own=(10, 0))
