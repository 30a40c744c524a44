"""What is known of every scenario and every user as of a time: the facts that prompts are made of.

Facts as of T come from events before T whose outcome was known before T, and from users, POIs and scenarios that were
known before T. Nothing that happened or became known at T or later can change them, and, where the test part is left
out, nothing of it ever does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import duckdb

from feature_repo import columns
from feature_repo.datasets.schema import BORDERS, Schema
from feature_repo.workspace import Workspace
from trainers.language.texts import TextError

KNOWN = "known_at"  # when both an event or an entity and our knowledge of it were there
# Beyond this many characters the name of a place is cut: a prompt is not for titles that are stories.
LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class FactsConfig:
    """How much of the past is told, and how often.

    Args:
        every_days: between snapshots; the first is one such span after the midnight (UTC) before the log begins.
        liked, left: places of a user at most, the newest that were clicked, and the newest that were shown and left.
        kinds: kinds of places at most, where those clicked most are listed.
        clicks: the newest ones of a user (and ten times as many of a scenario) whose POIs `recent` lists.
        own: numbers of events. A user of whom so many are known gets a snapshot at once, beside the regular ones: of
            some logs most users do all they ever do within an hour.
        test_part: whether its events are told too, in snapshots after them.
    """

    every_days: int = 7
    liked: int = 8
    left: int = 4
    kinds: int = 3
    clicks: int = 20
    own: tuple[int, ...] = ()
    test_part: bool = True

    def __post_init__(self) -> None:
        if min(self.every_days, self.liked, self.kinds, self.clicks, *self.own) < 1 or self.left < 0:
            raise TextError(
                f"every_days, liked, kinds, clicks and own must be positive and left not negative, got {self}"
            )


class Place(NamedTuple):
    """What a prompt says of a POI."""

    name: str
    category: str
    specialty: str | None


@dataclass(frozen=True, kw_only=True)
class ScenarioFacts:
    """One scenario so far.

    Attributes:
        requests, shown, clicked: how many; `shown` counts POIs.
        kinds: categories clicked most there, most first.
        shared: those of the categories clicked most everywhere that are among `kinds`.
        more, less: categories whose share of the clicks is higher, or lower, there than over all scenarios.
        elsewhere: clicks for each POI shown, over all scenarios.
        recent: ids of the POIs that were clicked last there, one a click, the newest first.
    """

    id: str
    name: str
    description: str
    requests: int = 0
    shown: int = 0
    clicked: int = 0
    kinds: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    elsewhere: float = 0.0
    recent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UserFacts:
    """One user so far, in every scenario.

    Attributes:
        profile: the user's text; empty where it was not known yet.
        requests, shown, clicked: how many; `shown` counts POIs.
        liked, left: for each scenario, POIs clicked, and POIs shown there and clicked nowhere, the newest first.
        kinds: for each scenario, the categories clicked most there.
        likes, specialties: categories and finest kinds clicked most over all scenarios.
        recent: ids of the POIs that were clicked last, one a click, the newest first.
    """

    id: str
    profile: str
    requests: int
    shown: int
    clicked: int
    liked: Mapping[str, tuple[Place, ...]]
    left: Mapping[str, tuple[Place, ...]]
    kinds: Mapping[str, tuple[str, ...]]
    likes: tuple[str, ...]
    specialties: tuple[str, ...]
    recent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that was known before `time`: scenarios in the order of their table, users with at least one event by id."""

    time: datetime
    scenarios: tuple[ScenarioFacts, ...]
    users: tuple[UserFacts, ...]


class History:
    """The log of a workspace, to be asked what was known as of any time."""

    def __init__(self, workspace: Workspace, config: FactsConfig) -> None:
        """Raises TextError where the workspace has no source tables."""
        if not workspace.schema.is_file():
            raise TextError(f"{workspace.sources} holds no source tables; build those of this workspace first")
        self._config = config
        split = Schema.load(workspace.schema).split
        self._end = split.end
        self._db = duckdb.connect()
        self._db.execute("SET TimeZone = 'UTC'")
        path = {name: str(workspace.source(name)) for name in ("impressions", "pois", "users", "scenarios")}
        self._db.execute(_EVENTS, [path["impressions"], path["pois"]])
        for name in ("users", "scenarios"):
            self._db.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM read_parquet(?)", [path[name]])
        if not config.test_part:
            self._db.execute("DELETE FROM events WHERE shown_at >= ?", [split.test])
            if split.by_user:
                self._db.execute(_LEAVE_OUT, [str(workspace.source(BORDERS))])

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def times(self) -> list[datetime]:
        """When snapshots are taken, up to the end of the log. Raises TextError for a log that is too short for one."""
        every = timedelta(days=self._config.every_days)
        [(start,)] = self._rows("SELECT date_trunc('day', min(shown_at)) FROM events")
        count = 0 if start is None else (self._end - start) // every
        if not count:
            raise TextError(f"the log is shorter than the {every.days} days between snapshots of it; take them oftener")
        return [start.astimezone(UTC) + every * number for number in range(1, count + 1)]

    def as_of(self, time: datetime) -> Facts:
        self._look_back(f"SELECT DISTINCT {columns.USER_ID}, ?::TIMESTAMPTZ AS moment FROM events", time)
        return Facts(time=time, scenarios=self._scenarios(time), users=self._users())

    def own(self) -> Iterator[Facts]:
        """Each user alone, at the first full second after so many events (`FactsConfig.own`) were known; of scenarios
        it is told what they are, not what happened there."""
        for events in self._config.own:
            self._look_back(_AFTER, events)
            moments = dict(self._rows("SELECT * FROM moments"))
            for user in self._users():
                time = moments[user.id].astimezone(UTC)
                scenarios = [ScenarioFacts(id=s, name=n, description=text) for s, n, text in self._described(time)]
                yield Facts(time=time, scenarios=tuple(scenarios), users=(user,))

    def _look_back(self, moments: str, value: object) -> None:
        """Have `before` hold what was known of each user before a moment: the rows (user, moment) of a query."""
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE moments AS {moments}", [value])
        self._db.execute(
            f"""CREATE OR REPLACE TEMP TABLE before AS
            SELECT events.* FROM events JOIN moments USING ({columns.USER_ID}) WHERE {KNOWN} < moment"""
        )

    def _rows(self, query: str, *values: object) -> list[Any]:
        return self._db.execute(query, list(values)).fetchall()

    def _described(self, time: datetime) -> list[Any]:
        return self._rows(
            f"""SELECT {columns.SCENARIO_ID}, {columns.NAME}, {columns.TEXT} FROM scenarios
            WHERE greatest({columns.EVENT_TIMESTAMP}, {columns.CREATED_TIMESTAMP}) < ?""",
            time,
        )

    def _scenarios(self, time: datetime) -> tuple[ScenarioFacts, ...]:
        counts = {scenario: numbers for scenario, *numbers in self._rows(_COUNTS.format(key=columns.SCENARIO_ID))}
        clicks: dict[str, dict[str, int]] = {}
        for scenario, category, number in self._rows(_CATEGORY_CLICKS):
            clicks.setdefault(scenario, {})[category] = number
        total = {c: sum(of.get(c, 0) for of in clicks.values()) for of in clicks.values() for c in of}
        shown = sum(numbers[1] for numbers in counts.values())
        rate = sum(total.values()) / shown if shown else 0.0
        everywhere = set(_most(total, self._config.kinds))
        recent = self._recent(columns.SCENARIO_ID, 10 * self._config.clicks)
        described = []
        for scenario, name, text in self._described(time):
            mine = clicks.get(scenario, {})
            kinds = _most(mine, self._config.kinds)
            more = {c: _share(mine, c) - _share(total, c) for c in total}
            requests, seen, clicked = counts.get(scenario, (0, 0, 0))
            described.append(
                ScenarioFacts(
                    id=scenario,
                    name=name,
                    description=text,
                    requests=requests,
                    shown=seen,
                    clicked=clicked,
                    kinds=kinds,
                    shared=tuple(kind for kind in kinds if kind in everywhere),
                    more=_most(more, self._config.kinds) if mine else (),
                    less=_most({c: -gap for c, gap in more.items()}, self._config.kinds) if mine else (),
                    elsewhere=rate,
                    recent=recent.get(scenario, ()),
                )
            )
        return tuple(described)

    def _users(self) -> tuple[UserFacts, ...]:
        profiles = dict(self._rows(_PROFILES))
        places: dict[tuple[str, bool], dict[str, list[Place]]] = {}
        for user, scenario, clicked, *place in self._rows(_PLACES, self._config.liked, self._config.left):
            of_user = places.setdefault((user, bool(clicked)), {})
            of_user.setdefault(scenario, []).append(Place(place[0][:LONGEST_NAME], *place[1:]))
        kinds: dict[str, dict[str, tuple[str, ...]]] = {}
        for user, scenario, names in self._rows(
            _most_clicked(columns.CATEGORY, columns.SCENARIO_ID), self._config.kinds
        ):
            kinds.setdefault(user, {})[scenario] = tuple(names)
        likes, specialties = (
            {user: tuple(names) for user, names in self._rows(_most_clicked(column), self._config.kinds)}
            for column in (columns.CATEGORY, columns.SPECIALTY)
        )
        recent = self._recent(columns.USER_ID, self._config.clicks)
        return tuple(
            UserFacts(
                id=user,
                profile=profiles.get(user, ""),
                requests=requests,
                shown=shown,
                clicked=clicked,
                liked={s: tuple(found) for s, found in places.get((user, True), {}).items()},
                left={s: tuple(found) for s, found in places.get((user, False), {}).items()},
                kinds=kinds.get(user, {}),
                likes=likes.get(user, ()),
                specialties=specialties.get(user, ()),
                recent=recent.get(user, ()),
            )
            for user, requests, shown, clicked in self._rows(_COUNTS.format(key=columns.USER_ID))
        )

    def _recent(self, key: str, count: int) -> dict[str, tuple[str, ...]]:
        return {name: tuple(pois) for name, pois in self._rows(_RECENT.format(key=key), count)}


_EVENTS = f"""
    CREATE TEMP TABLE events AS
    SELECT i.{columns.ROW_ID}, i.{columns.REQUEST_ID}, i.{columns.USER_ID}, i.{columns.POI_ID},
           i.{columns.SCENARIO_ID}, i.{columns.CLICK}, i.{columns.EVENT_TIMESTAMP} AS shown_at,
           p.{columns.NAME}, p.{columns.CATEGORY}, p.{columns.SPECIALTY},
           greatest(i.{columns.EVENT_TIMESTAMP}, i.{columns.OUTCOME_TIMESTAMP}) AS outcome_at,
           greatest(i.{columns.EVENT_TIMESTAMP}, i.{columns.OUTCOME_TIMESTAMP},
                    p.{columns.EVENT_TIMESTAMP}, p.{columns.CREATED_TIMESTAMP}) AS {KNOWN}
    FROM read_parquet(?) i JOIN read_parquet(?) p USING ({columns.POI_ID})"""

_LEAVE_OUT = f"""
    DELETE FROM events USING read_parquet(?) AS borders
    WHERE events.{columns.USER_ID} = borders.{columns.USER_ID} AND shown_at >= borders.test"""

_AFTER = f"""
    SELECT {columns.USER_ID}, date_trunc('second', {KNOWN}) + INTERVAL 1 SECOND AS moment FROM events
    QUALIFY row_number() OVER (PARTITION BY {columns.USER_ID} ORDER BY {KNOWN}, {columns.ROW_ID}) = ?"""

_PROFILES = f"""
    SELECT {columns.USER_ID}, {columns.TEXT} FROM users JOIN moments USING ({columns.USER_ID})
    WHERE greatest({columns.EVENT_TIMESTAMP}, {columns.CREATED_TIMESTAMP}) < moment"""

_COUNTS = f"""
    SELECT {{key}}, count(DISTINCT {columns.REQUEST_ID}), count(*), sum({columns.CLICK})::BIGINT
    FROM before GROUP BY {{key}} ORDER BY {{key}}"""

_CATEGORY_CLICKS = f"""
    SELECT {columns.SCENARIO_ID}, {columns.CATEGORY}, count(*) FROM before
    WHERE {columns.CLICK} = 1 GROUP BY ALL"""

_RECENT = f"""
    SELECT {{key}}, list({columns.POI_ID} ORDER BY outcome_at DESC, {columns.ROW_ID} DESC)
    FROM (SELECT * FROM before WHERE {columns.CLICK} = 1
          QUALIFY row_number() OVER (PARTITION BY {{key}} ORDER BY outcome_at DESC, {columns.ROW_ID} DESC) <= ?)
    GROUP BY {{key}} ORDER BY {{key}}"""

# Each POI once a user and scenario, at its newest event; of POIs that the user clicked anywhere only the clicks count.
_PLACES = f"""
    WITH ever AS (
        SELECT *, max({columns.CLICK}) OVER (PARTITION BY {columns.USER_ID}, {columns.POI_ID}) AS clicked FROM before),
    once AS (
        SELECT * FROM ever WHERE {columns.CLICK} = clicked
        QUALIFY row_number() OVER (PARTITION BY {columns.USER_ID}, {columns.SCENARIO_ID}, {columns.POI_ID}
                                   ORDER BY outcome_at DESC, {columns.ROW_ID} DESC) = 1),
    newest AS (
        SELECT *, row_number() OVER (PARTITION BY {columns.USER_ID}, clicked
                                     ORDER BY outcome_at DESC, {columns.ROW_ID} DESC) AS place FROM once)
    SELECT {columns.USER_ID}, {columns.SCENARIO_ID}, clicked, {columns.NAME}, {columns.CATEGORY}, {columns.SPECIALTY}
    FROM newest WHERE place <= CASE clicked WHEN 1 THEN ? ELSE ? END
    ORDER BY {columns.USER_ID}, clicked, place"""


def _most_clicked(column: str, *keys: str) -> str:
    """A query for the values of a column that each user (and key) clicked most; the newest first among equals."""
    key = ", ".join((columns.USER_ID, *keys))
    return f"""
        WITH counted AS (
            SELECT {key}, {column} AS word, count(*) AS clicks, max(outcome_at) AS newest FROM before
            WHERE {columns.CLICK} = 1 AND {column} IS NOT NULL GROUP BY ALL),
        placed AS (
            SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY clicks DESC, newest DESC, word) AS place
            FROM counted)
        SELECT {key}, list(word ORDER BY place) FROM placed WHERE place <= ? GROUP BY {key} ORDER BY {key}"""


def _most(numbers: Mapping[str, float], count: int) -> tuple[str, ...]:
    """The words with the highest positive numbers, in order; the alphabet decides among equals."""
    return tuple(sorted((w for w, number in numbers.items() if number > 0), key=lambda w: (-numbers[w], w))[:count])


def _share(numbers: Mapping[str, int], word: str) -> float:
    return numbers.get(word, 0) / max(1, sum(numbers.values()))
