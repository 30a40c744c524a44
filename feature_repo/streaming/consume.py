"""Clicks -> the online store, each counted once: read, merge into the users' states, push, put on record, go on.

Of one source one step is under way at a time: two that read a state, added to it and wrote it back would lose clicks.
A step pushes before it puts its clicks on record. Killed in between, it does the same again to the same end: states are
unions of clicks (`state`). Killed at any other point, it has done nothing or all.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import sqlalchemy.exc
from feast import FeatureStore
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_repo import columns
from feature_repo.aggregates import USER_STATE, USER_STATE_PUSH
from feature_repo.stores.packed import packed_store
from feature_repo.streaming.click import BadClick, Click, parse
from feature_repo.streaming.ledger import Ledger, Overtaken, Rejected, Turn
from feature_repo.streaming.source import Message, Source
from feature_repo.streaming.state import Kind, UserState

log = logging.getLogger(__name__)
TRIED_AGAIN = (  # what is out of reach, and what another process has dealt with since
    OSError,
    RedisConnectionError,
    RedisTimeoutError,
    sqlite3.OperationalError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.IntegrityError,
    Overtaken,
)
PAUSES_S = (0.1, 0.5, 1.0, 5.0)  # before trying again, the last one for ever


@dataclass(frozen=True, kw_only=True)
class Step:
    """What came of some messages.

    Attributes:
        lag_s: seconds from the newest click's own time to its being in the store; None without a click.
        failed: something was out of reach, or another process was quicker, and nothing came of it.
    """

    clicks: int = 0
    repeated: int = 0
    rejected: int = 0
    lag_s: float | None = None
    failed: bool = False

    @property
    def messages(self) -> int:
        return self.clicks + self.repeated + self.rejected


class Consumer:
    """Keeps `user_state` up with one source.

    Raises ValueError for an online store that does not keep the newer one of two states: whoever fills it from the log
    would take the clicks of the stream back.

    Args:
        now: the clock; a log of the past that is replayed has one of its own.
    """

    def __init__(
        self,
        store: FeatureStore,
        source: Source,
        ledger: Ledger,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        online = packed_store(store)
        if online is None:
            raise ValueError(
                f"clicks need an online store that keeps the newer one of two states, and "
                f"{store.config.online_store.type!r} does not; apply the profile embedded, redis, cluster, ray or spark"
            )
        self._store, self._online, self._source, self._ledger, self._now = store, online, source, ledger, now
        self._resumed = False
        self._position: str | None = None  # of the record, as this process knows it

    def run(
        self, stopped: Callable[[Step], bool], most: int = 1000, wait_s: float = 1.0, sleep: Any = time.sleep
    ) -> None:
        """Steps until `stopped` says so, which is asked after each of them.

        A store, a source or a database that cannot be reached is waited for; nothing is lost meanwhile. Where another
        process reads the same source, each goes on from where the record is.
        """
        failures = 0
        while True:
            try:
                step = self.step(most, wait_s)
                failures = 0
            except TRIED_AGAIN as error:
                pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                log.warning("%s: %s; trying again in %.1f s", type(error).__name__, error, pause)
                self._resumed, failures, step = False, failures + 1, Step(failed=True)
                sleep(pause)
            if stopped(step):
                return

    def step(self, most: int = 1000, wait_s: float = 1.0) -> Step:
        """The next messages, at most so many, into the store and on record."""
        if not self._resumed:
            self._position = self._ledger.position(self._source.name)
            self._source.resume(self._position)
            self._resumed = True
        messages = self._source.read(most, wait_s)
        if not messages:
            return Step()
        with self._ledger.turn(self._source.name, self._position) as turn:
            clicks, rejected = self._dealt_with(messages, turn)
        self._position = messages[-1].position
        self._source.done(messages)
        for one in rejected:
            log.warning("message %s of %s left out: %s", one.message.position, self._source.name, one.reason)
        newest = max((click.time for click in clicks), default=None)
        return Step(
            clicks=len(clicks),
            repeated=len(messages) - len(clicks) - len(rejected),
            rejected=len(rejected),
            lag_s=None if newest is None else (self._now() - newest).total_seconds(),
        )

    def _dealt_with(self, messages: Sequence[Message], turn: Turn) -> tuple[list[Click], list[Rejected]]:
        """In the store and on record: the clicks that were new, and what was left out, in the order of the messages."""
        good, rejected = self._parsed(messages)
        seen = turn.seen({click.event_id for _, click in good})
        new = [(message, click) for message, click in good if click.event_id not in seen]
        kinds = self._kinds({click.poi_id for _, click in new})
        clicks, unknown = _counted(new, kinds)
        rejected = sorted(rejected + unknown, key=lambda one: messages.index(one.message))
        if clicks:
            self._push(clicks, kinds)
        turn.commit(messages[-1].position, clicks, rejected)
        return clicks, rejected

    def _parsed(self, messages: Sequence[Message]) -> tuple[list[tuple[Message, Click]], list[Rejected]]:
        good: list[tuple[Message, Click]] = []
        bad: list[Rejected] = []
        now = self._now()
        for message in messages:
            try:
                good.append((message, parse(message.text, now)))
            except BadClick as error:
                bad.append(Rejected(message, str(error)))
        return good, bad

    def _kinds(self, poi_ids: Iterable[str]) -> dict[str, Kind]:
        """Of the POIs that the store knows."""
        wanted = (columns.NAME, columns.CATEGORY, columns.SPECIALTY)
        found = self._read("poi_profile", columns.POI_ID, sorted(poi_ids), wanted)
        return {
            poi: Kind(row[columns.CATEGORY], row[columns.SPECIALTY])
            for poi, row in found.items()
            if row[columns.NAME] is not None
        }

    def _push(self, clicks: Sequence[Click], kinds: dict[str, Kind]) -> None:
        of_user: defaultdict[str, list[Click]] = defaultdict(list)
        for click in clicks:
            of_user[click.user_id].append(click)
        before = self._read(USER_STATE, columns.USER_ID, list(of_user), tuple(UserState().row()))
        after = {user: UserState.of(before[user]).after(some, kinds) for user, some in of_user.items()}
        table = pd.DataFrame([{columns.USER_ID: user, **state.row()} for user, state in after.items()])
        table[columns.LAST_ORDER_TIME] = table[columns.LAST_ORDER_TIME].astype("Int64")
        table[columns.EVENT_TIMESTAMP] = pd.to_datetime([s.event_us for s in after.values()], unit="us", utc=True)
        # Known from now on: of two states with the same newest click, the one that a late click came into is newer.
        table[columns.CREATED_TIMESTAMP] = pd.Timestamp(self._now())
        self._store.push(USER_STATE_PUSH, table)

    def _read(self, view: str, key: str, ids: list[str], features: Sequence[str]) -> dict[str, dict[str, Any]]:
        """A row of each id, nulls where there is nothing; however old, as a state that expired is still true."""
        if not ids:
            return {}
        plan = self._online.prepare(self._store.config, self._store.get_feature_view(view), list(features))
        found = self._online.read(self._store.config, [(plan, {key: ids})], None)[0].values
        columns_of = {feature: found[feature].to_pylist() for feature in features}
        return {one: {feature: columns_of[feature][at] for feature in features} for at, one in enumerate(ids)}


def _counted(new: Sequence[tuple[Message, Click]], kinds: Collection[str]) -> tuple[list[Click], list[Rejected]]:
    """Of each event the first click on a POI that is known, and what is left out; as if each message came alone."""
    counted: dict[str, Click] = {}
    unknown: list[Rejected] = []
    for message, click in new:
        if click.event_id in counted:
            continue
        if click.poi_id in kinds:
            counted[click.event_id] = click
        else:
            unknown.append(Rejected(message, _unknown(click)))
    return list(counted.values()), unknown


def _unknown(click: Click) -> str:
    return f"poi_id: no {click.poi_id!r} in the online store; materialise poi_profile and send the click again"
